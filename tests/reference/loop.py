# SPDX-License-Identifier: Apache-2.0
"""The official denoising loop, one request at a time, over the full sequence.

Written from the description of ``generate_with_embeds`` and compared with its
recorded results (``test_reference.py``). It shares no code with the package.
Guidance is the business of ``logits_fn``, which may combine two forward passes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

LogitsFn = Callable[[torch.Tensor], torch.Tensor]
"""Token ids ``[n]`` -> logits ``[n, vocab]``. Rows that are no masks are not read."""

UniformFn = Callable[[torch.Tensor, int], torch.Tensor]
"""Token ids ``[n]``, columns -> noise ``[n, columns]``, float64 in [0, 1)."""

MINUS_INF = float("-inf")
ALL, CONFIDENT = -1, -2


@dataclass(frozen=True)
class Arguments:
    """Arguments of the official ``generate``, stop strings and suffix encoded."""

    gen_length: int
    block_length: int
    steps: int
    mask_id: int
    banned_ids: tuple[int, ...] = ()
    temperature: float = 0.0
    remasking: str = "low_confidence"
    stop_sequences: tuple[tuple[int, ...], ...] = ()
    suffix_ids: tuple[int, ...] = ()
    # Confidence decoding (Fast-dLLM, arXiv 2505.22618): not in the official code.
    threshold: float | None = None
    factor: float | None = None


@dataclass(frozen=True)
class Step:
    """What one step selected, in the order of ``torch.topk``."""

    positions: tuple[int, ...]  # Counted from the start of the prompt.
    tokens: tuple[int, ...]  # Predicted there.
    was_mask: tuple[bool, ...]  # Others keep their token.

    @property
    def transferred(self) -> list[int]:
        """Positions that took their prediction, ascending."""
        pairs = zip(self.positions, self.was_mask, strict=True)
        return sorted(position for position, was_mask in pairs if was_mask)


@dataclass(frozen=True)
class Result:
    canvas: tuple[int, ...]  # All of it, also what is behind the stop.
    stop: int | None  # Canvas position where the answer is cut.
    suffix_ids: tuple[int, ...]
    steps: tuple[Step, ...]

    @property
    def answer(self) -> tuple[int, ...]:
        return self.canvas[: self.stop]

    @property
    def output_ids(self) -> tuple[int, ...]:
        """What the official code returns."""
        return self.answer + self.suffix_ids


def generate(
    prompt_ids: Sequence[int],
    args: Arguments,
    logits_fn: LogitsFn,
    uniform_fn: UniformFn | None = None,
) -> Result:
    """Denoise one request. ``uniform_fn`` is needed where something is random."""
    loop = _Loop(prompt_ids, args, logits_fn, uniform_fn)
    loop.run()
    return Result(
        canvas=tuple(loop.canvas.tolist()),
        stop=None if loop.stop is None else loop.stop - loop.prompt_len,
        suffix_ids=args.suffix_ids,
        steps=tuple(loop.steps),
    )


class _Loop:
    def __init__(
        self,
        prompt_ids: Sequence[int],
        args: Arguments,
        logits_fn: LogitsFn,
        uniform_fn: UniformFn | None,
    ) -> None:
        assert args.gen_length % args.block_length == 0
        self.num_blocks = args.gen_length // args.block_length
        assert args.steps % self.num_blocks == 0
        self.args = args
        self.logits_fn = logits_fn
        self.uniform_fn = uniform_fn
        self.prompt_len = len(prompt_ids)
        self.canvas_end = self.prompt_len + args.gen_length
        masks = [args.mask_id] * args.gen_length
        self.x = torch.tensor([*prompt_ids, *masks, *args.suffix_ids])
        self.stop: int | None = None
        self.steps: list[Step] = []

    @property
    def canvas(self) -> torch.Tensor:
        return self.x[self.prompt_len : self.canvas_end]

    def run(self) -> None:
        for block in range(self.num_blocks):
            start = self.prompt_len + block * self.args.block_length
            if self.stop is not None and self.stop <= start:
                return
            if self.run_block(start, start + self.args.block_length):
                return

    def run_block(self, start: int, end: int) -> bool:
        """Returns whether the answer is complete."""
        steps = self.args.steps // self.num_blocks
        by_confidence = (self.args.threshold, self.args.factor) != (None, None)
        for step, count in enumerate(quotas(self.num_masks(start, end), steps)):
            if self.num_masks(start, end) == 0:
                return False
            if by_confidence:
                count = ALL if step == steps - 1 else CONFIDENT
            self.run_step(count, end)
            self.search_stops()
            if self.stop is not None and not self.num_masks(self.prompt_len, self.stop):
                return True
        return False

    def num_masks(self, start: int, end: int) -> int:
        return int((self.x[start:end] == self.args.mask_id).sum())

    def run_step(self, count: int, block_end: int) -> None:
        is_mask = self.x == self.args.mask_id
        tokens, confidence = self.predict(is_mask)
        confidence[block_end if self.stop is None else self.stop :] = MINUS_INF
        confidence[self.canvas_end :] = MINUS_INF
        confidence[~is_mask] = MINUS_INF
        if count in (ALL, CONFIDENT):
            count = self.num_transfers(confidence[confidence >= 0].tolist(), count)
        selected = torch.topk(confidence, count).indices
        self.steps.append(
            Step(
                positions=tuple(selected.tolist()),
                tokens=tuple(tokens[selected].tolist()),
                was_mask=tuple(is_mask[selected].tolist()),
            )
        )
        filled = selected[is_mask[selected]]
        self.x[filled] = tokens[filled]

    def num_transfers(self, confidence: list[float], count: int) -> int:
        """Confident ones of the candidates, at least one; or all of them."""
        if count == ALL:
            return len(confidence)
        ranked = sorted(confidence, reverse=True)
        num_above = num_by_factor = 0
        if self.args.threshold is not None:
            num_above = sum(c >= self.args.threshold for c in ranked)
        if self.args.factor is not None:
            for n, c in enumerate(ranked, start=1):
                if (n + 1) * (1 - c) >= self.args.factor:
                    break
                num_by_factor = n
        return max(num_above, num_by_factor, 1)

    def predict(self, is_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens ``[n]`` and confidence ``[n]``; only those of masks mean anything."""
        logits = self.logits_fn(self.x)[is_mask].float()
        logits[:, list(self.args.banned_ids)] = MINUS_INF
        scores = logits.double()
        if self.args.temperature > 0:
            noise = -torch.log(self.uniform(logits.shape[-1])[is_mask])
            scores = scores.exp() / noise**self.args.temperature
        tokens = torch.zeros_like(self.x)
        tokens[is_mask] = scores.argmax(dim=-1)
        confidence = torch.full(self.x.shape, MINUS_INF, dtype=torch.float64)
        if self.args.remasking == "random":
            confidence[:] = self.uniform(1)[:, 0]
        else:
            probabilities = logits.double().softmax(dim=-1)
            chosen = probabilities.gather(-1, tokens[is_mask][:, None])
            confidence[is_mask] = chosen[:, 0]
        return tokens, confidence

    def uniform(self, columns: int) -> torch.Tensor:
        assert self.uniform_fn is not None
        return self.uniform_fn(self.x, columns)

    def search_stops(self) -> None:
        """Once any sequence was found, the search ends with the first of the list."""
        canvas = self.canvas.tolist()
        for sequence in self.args.stop_sequences:
            for start in range(len(canvas) - len(sequence) + 1):
                if tuple(canvas[start : start + len(sequence)]) == sequence:
                    position = self.prompt_len + start
                    if self.stop is None or position < self.stop:
                        self.stop = position
                    break
            if self.stop is not None:
                return


def quotas(num_masks: int, steps: int) -> list[int]:
    """Positions to transfer in each step: dealt out one at a time, in rounds."""
    counts = [0] * steps
    for index in range(num_masks):
        counts[index % steps] += 1
    return counts
