# SPDX-License-Identifier: Apache-2.0
"""A canvas ends where the official loop ends, step by step, and streams honestly.

``Canvas`` sees only the predictions of its candidates; the reference computes
everything over the full sequence. Both are driven by the same random logits, over
a vocabulary so small that stops, predicted masks and steps with fewer candidates
than transfers are common.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pytest
import torch
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from tests.canvas import OneCanvas
from tests.reference import loop as reference
from vllm_lladav.denoising.marks import NOTHING, FinishMark
from vllm_lladav.denoising.params import DenoisingParams

MASK = 0
BANNED = (1, 2)
FIRST_ORDINARY = 3


@dataclass(frozen=True)
class Request:
    """A request to a made-up model, whose logits depend on the whole sequence."""

    prompt: tuple[int, ...]
    params: DenoisingParams
    vocab: int
    seed: int
    num_levels: int  # Few levels give equal confidences.
    mask_bias: float

    def logits(self, token_ids: torch.Tensor) -> torch.Tensor:
        levels = torch.randint(
            self.num_levels,
            (len(token_ids), self.vocab),
            generator=self._generator(token_ids),
        )
        logits = levels * (6.0 / self.num_levels)
        logits[:, MASK] += self.mask_bias
        return logits

    def uniform(self, token_ids: torch.Tensor, columns: int) -> torch.Tensor:
        return torch.rand(
            (len(token_ids), columns),
            dtype=torch.float64,
            generator=self._generator(token_ids),
        )

    def _generator(self, token_ids: torch.Tensor) -> torch.Generator:
        state = self.seed
        for token_id in token_ids.tolist():
            state = (state * 1_000_003 + token_id + 1) % 2**61
        return torch.Generator().manual_seed(state)

    @cached_property
    def arguments(self) -> reference.Arguments:
        params = self.params
        stops = params.stop_sequences
        if params.end_token_id is not None:
            assert not stops, "the official code has no such thing"
            stops = ((params.end_token_id,),)
        return reference.Arguments(
            gen_length=params.gen_length,
            block_length=params.block_length,
            steps=params.steps,
            mask_id=MASK,
            banned_ids=BANNED,
            temperature=params.temperature,
            remasking=params.remasking,
            stop_sequences=stops,
            suffix_ids=params.suffix_token_ids,
            threshold=params.confidence_threshold or None,
            factor=params.confidence_factor or None,
        )

    @cached_property
    def expected(self) -> reference.Result:
        return reference.generate(
            self.prompt, self.arguments, self.logits, self.uniform
        )

    def predictions(self, token_ids: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
        """The model's prediction at every position, by the reference's maths."""
        model = reference._Loop((), self.arguments, self.logits, self.uniform)
        model.x = torch.from_numpy(token_ids.copy())
        tokens, confidence = model.predict(model.x == MASK)
        return tokens.numpy(), confidence

    def canvas(
        self, num_emitted: int = 0, has_official_order: bool = True
    ) -> OneCanvas:
        prompt = list(self.prompt)
        return OneCanvas(self.params, prompt, MASK, num_emitted, has_official_order)


@dataclass(frozen=True)
class Run:
    """What a canvas did until it was finished."""

    canvas: OneCanvas
    transferred: list[list[int]]
    outputs: list[list[int]]  # Of every step.
    snapshots: list[list[int]]  # The canvas after every step.


def run(request: Request, canvas: OneCanvas) -> Run:
    record = Run(canvas, [], [], [])
    while not canvas.finished:
        tokens, confidence = request.predictions(canvas.token_ids)
        candidates = canvas.candidates()
        transferred = canvas.transfer(
            candidates,
            tokens[candidates],
            confidence[candidates],
            tokens.__getitem__,
        )
        record.transferred.append(transferred.tolist())
        record.outputs.append([t for t in canvas.take_output() if t != NOTHING])
        record.snapshots.append(canvas.generated.tolist())
    return record


def joined(outputs: list[list[int]]) -> list[int]:
    return [token_id for output in outputs for token_id in output]


@st.composite
def requests(draw: st.DrawFn) -> Request:
    # Crowded: a stop soon leaves fewer candidates than a step transfers, and a short
    # prompt sends the rest of them beyond the stop, the block, or into the suffix.
    crowded = draw(st.booleans())
    vocab = draw(st.sampled_from([6, 9] if crowded else [9, 15, 40]))
    ordinary = st.integers(FIRST_ORDINARY, vocab - 1)
    block_length = draw(st.integers(6, 12) if crowded else st.integers(1, 12))
    num_blocks = draw(st.integers(1, 4))
    some_steps = [2, 3] if crowded else [1, 2, block_length, block_length + 3]
    steps_per_block = draw(st.sampled_from(some_steps))
    prompt = draw(
        st.lists(ordinary, min_size=1, max_size=2 if crowded else 20)
        | st.lists(ordinary | st.just(MASK), min_size=1, max_size=8)
    )
    stop = st.lists(ordinary, min_size=1, max_size=2).map(tuple)
    stops = draw(st.lists(stop, min_size=1 if crowded else 0, max_size=3))
    end_token_id = None if stops else draw(st.none() | ordinary)
    temperature = draw(st.sampled_from([0.0, 0.0, 0.5, 1.0]))
    remasking = draw(st.sampled_from(["low_confidence", "low_confidence", "random"]))
    threshold = factor = 0.0
    if remasking == "low_confidence":
        threshold = draw(st.sampled_from([0.0, 0.05, 0.2, 0.5, 1.0]))
        factor = draw(st.sampled_from([0.0, 0.5, 1.0, 1.7, 3.0]))
    return Request(
        prompt=tuple(prompt),
        params=DenoisingParams(
            gen_length=block_length * num_blocks,
            block_length=block_length,
            steps=steps_per_block * num_blocks,
            temperature=temperature,
            remasking=remasking,
            seed=1 if temperature > 0 or remasking == "random" else None,
            max_answer_tokens=block_length * num_blocks,
            stop_sequences=tuple(stops),
            end_token_id=end_token_id,
            suffix_token_ids=tuple(draw(st.lists(ordinary, max_size=3))),
            confidence_threshold=threshold,
            confidence_factor=factor,
        ),
        vocab=vocab,
        seed=draw(st.integers(0, 2**32 - 1)),
        num_levels=draw(st.sampled_from([2, 4, 1_000_000])),
        mask_bias=draw(st.sampled_from([-100.0, -100.0, 0.0, 3.0])),
    )


def note_events(request: Request) -> None:
    """For ``pytest --hypothesis-show-statistics``: the rare things do occur."""
    expected, end = request.expected, len(request.prompt) + len(request.expected.canvas)
    event(f"stopped: {expected.stop is not None}")
    event(f"answer keeps masks: {MASK in expected.answer}")
    event(
        "a step took what was no mask: "
        f"{any(not all(step.was_mask) for step in expected.steps)}"
    )
    event(f"ended early: {len(expected.steps) < request.params.steps}")
    event(f"by confidence: {request.params.is_confident}")
    event(f"suffix taken: {any(p >= end for s in expected.steps for p in s.positions)}")


@settings(max_examples=400, deadline=None)
@given(requests())
def test_equals_the_official_loop(request: Request):
    """Same answer, same whole canvas, same transfers in every step."""
    note_events(request)
    expected = request.expected
    actual = run(request, request.canvas())
    *output, mark = joined(actual.outputs)
    assert tuple(output) == expected.output_ids
    assert (mark == FinishMark.LENGTH) == (expected.stop is None)
    assert actual.canvas.generated.tolist() == list(expected.canvas)
    steps = [step.transferred for step in expected.steps if step.positions]
    assert actual.transferred == steps
    assert actual.canvas.tail.tolist() == list(expected.canvas + expected.suffix_ids)


@settings(max_examples=300, deadline=None)
@given(requests())
def test_streams_only_what_is_final(request: Request):
    """What was emitted by a step stands in the canvas from then on, in the same
    place, and in the answer; masks are emitted at the end only."""
    actual = run(request, request.canvas())
    answer = request.expected.answer
    emitted: list[int] = []
    for index, output in enumerate(actual.outputs[:-1]):
        assert MASK not in output
        assert all(token_id >= 0 for token_id in output)
        emitted += output
        for snapshot in actual.snapshots[index:]:
            assert snapshot[: len(emitted)] == emitted
        assert tuple(emitted) == answer[: len(emitted)]
    assert tuple(emitted + actual.outputs[-1][:-1]) == request.expected.output_ids


@settings(max_examples=300, deadline=None)
@given(requests(), st.integers(0, 40))
def test_preempted_request_emits_the_rest(request: Request, num_steps: int):
    """A canvas that starts again emits exactly what was not emitted before."""
    first = run(request, request.canvas())
    *answer, mark = joined(first.outputs)
    num_steps %= len(first.outputs) + 1
    num_emitted = min(len(joined(first.outputs[:num_steps])), len(answer))
    second = run(request, request.canvas(num_emitted))
    assert joined(second.outputs) == [*answer[num_emitted:], mark]
    assert second.transferred == first.transferred


@settings(max_examples=300, deadline=None)
@given(requests(), st.integers(1, 40))
def test_max_answer_tokens_cuts_the_answer(request: Request, limit: int):
    """The beginning of the official answer, and the suffix, in no more steps."""
    limit = 1 + limit % request.params.gen_length
    limited = replace(request, params=replace(request.params, max_answer_tokens=limit))
    actual = run(limited, limited.canvas())
    *output, mark = joined(actual.outputs)
    assert (
        tuple(output) == request.expected.answer[:limit] + request.expected.suffix_ids
    )
    if len(request.expected.answer) > limit:
        assert mark == FinishMark.LENGTH
    steps = [step.transferred for step in request.expected.steps if step.positions]
    assert actual.transferred == steps[: len(actual.transferred)]


def scripted(
    params: DenoisingParams, tokens: list[int], order: list[int], prompt: int = 2
) -> Run:
    """A model that predicts ``tokens`` and is most confident in ``order``."""
    canvas = OneCanvas(params, [FIRST_ORDINARY] * prompt, MASK)
    full = np.array([FIRST_ORDINARY] * prompt + tokens)
    confidence = torch.zeros(len(full), dtype=torch.float64)
    for rank, position in enumerate(order):
        confidence[prompt + position] = len(order) - rank
    record = Run(canvas, [], [], [])
    while not canvas.finished:
        candidates = canvas.candidates()
        moved = canvas.transfer(
            candidates, full[candidates], confidence[candidates], full.__getitem__
        )
        record.transferred.append((moved - prompt).tolist())
        record.outputs.append([t for t in canvas.take_output() if t != NOTHING])
        record.snapshots.append(canvas.generated.tolist())
    return record


def params(gen_length: int, steps: int, **changes) -> DenoisingParams:
    defaults = {
        "block_length": gen_length,
        "temperature": 0.0,
        "remasking": "low_confidence",
        "seed": None,
        "max_answer_tokens": gen_length,
    }
    return DenoisingParams(
        gen_length=gen_length, steps=steps, **{**defaults, **changes}
    )


def test_streams_the_unmasked_prefix():
    actual = scripted(params(4, 4), [5, 6, 7, 8], order=[1, 0, 3, 2])
    assert actual.outputs == [[], [5, 6], [], [7, 8, FinishMark.LENGTH]]


def test_holds_back_what_may_begin_a_stop():
    """The stop (6, 7) may still begin in the last unmasked token."""
    actual = scripted(
        params(4, 4, stop_sequences=((6, 7),)), [5, 6, 8, 9], order=[0, 1, 2, 3]
    )
    assert actual.outputs == [[], [5], [6], [8, 9, FinishMark.LENGTH]]


def test_mark_names_the_stop_string():
    stops = ((9,), (7,))
    actual = scripted(
        params(4, 4, stop_sequences=stops), [5, 6, 7, 8], order=[2, 1, 0, 3]
    )
    assert joined(actual.outputs) == [5, 6, FinishMark.STOP_STRING - 1]
    assert actual.transferred == [[2], [1], [0]]


@pytest.mark.parametrize("stop", [(), ((7,),)])
def test_end_token_is_always_looked_for(stop):
    """Unlike the request's own stops, of which only the first is looked for once
    one was found: the end token at 1 cuts the answer after the stop at 3."""
    actual = scripted(
        params(5, 5, stop_sequences=stop, end_token_id=6),
        [5, 6, 8, 7, 9],
        order=[3, 1, 0, 2, 4],
    )
    assert joined(actual.outputs) == [5, FinishMark.END_TOKEN]
    assert actual.transferred == [[3], [1], [0]]


def test_empty_answer():
    """The stop is the first token: nothing but the suffix and the mark."""
    actual = scripted(
        params(3, 3, end_token_id=6, suffix_token_ids=(4, 5)),
        [6, 7, 8, 4, 5],
        order=[0, 1, 2],
    )
    assert actual.outputs == [[4, 5, FinishMark.END_TOKEN]]


def test_ends_when_the_rest_would_be_cut():
    """Two answer tokens of a canvas of four: two steps are not run."""
    actual = scripted(params(4, 4, max_answer_tokens=2), [5, 6, 7, 8], [0, 1, 2, 3])
    assert actual.outputs == [[5], [6, FinishMark.LENGTH]]


@pytest.mark.parametrize("threshold", [0.0, 9.0])
def test_more_steps_than_anyone_can_count(threshold: float):
    """A step for each mask, which no confidence of the script allows more than, and no
    work for steps that are never run."""
    endless = params(4, 2**31 - 1, confidence_threshold=threshold)
    actual = scripted(endless, [5, 6, 7, 8], order=[0, 1, 2, 3])
    assert actual.transferred == [[0], [1], [2], [3]]


@settings(max_examples=50, deadline=None)
@given(requests())
def test_candidates_are_masks_and_never_the_suffix(request: Request):
    assume(request.params.suffix_token_ids)
    canvas = request.canvas()
    candidates = canvas.candidates()
    end = len(request.prompt) + request.params.block_length
    masks = [p for p, token in enumerate(request.prompt) if token == MASK]
    assert candidates.tolist() == masks + list(range(len(request.prompt), end))
