# SPDX-License-Identifier: Apache-2.0
"""The canvas of one request: which positions are masks, and what happens next.

A :class:`Canvas` is the state that the official ``generate_with_embeds`` loop
keeps in local variables. It knows no engine, no batch and no logits: every
denoising step it names the positions that need a prediction
(:meth:`Canvas.candidates`) and takes the predictions (:meth:`Canvas.transfer`).
Everything is a deterministic function of the request and the predictions, so
all tensor-parallel ranks, and a preempted request that starts again, agree.
"""

from collections.abc import Callable

import numpy as np
import torch

from vllm_lladav.denoising.marks import FinishMark
from vllm_lladav.denoising.params import DenoisingParams
from vllm_lladav.denoising.plan import Span, StepIndex, transfer_count
from vllm_lladav.denoising.unmasking import (
    find_sequence,
    most_confident,
    num_confident,
    select_transfers,
)

Predict = Callable[[np.ndarray], np.ndarray]
"""Positions ``[n]`` -> predicted tokens ``[n]`` (both int64)."""


class Canvas:
    """One request's tokens while it is denoised.

    Positions count from the prompt's start: prompt ``[0, P)``, canvas ``[P, P +
    gen_length)``, then the generation suffix. Where prompt tokens are pruned, all
    positions move up (:meth:`keep_prompt`). Offsets, in which blocks and stops are
    kept, count from the canvas's start and do not move.

    Args:
        params: the request.
        prompt_token_ids: ``[P]``; image placeholders are ordinary ids here.
        mask_token_id: of the checkpoint.
        num_emitted: answer tokens that the scheduler has already, after a
            preemption; they are not emitted again.
    """

    def __init__(
        self,
        params: DenoisingParams,
        prompt_token_ids: list[int],
        mask_token_id: int,
        num_emitted: int = 0,
    ) -> None:
        self.params = params
        self.mask_token_id = mask_token_id
        self.prompt_len = len(prompt_token_ids)
        self.token_ids = np.full(  # [P + C + suffix], int64
            self.prompt_len + params.num_tail_tokens, mask_token_id, np.int64
        )
        self.token_ids[: self.prompt_len] = prompt_token_ids
        self.token_ids[self._canvas_end :] = params.suffix_token_ids
        self.step = 0
        self.finished = False
        self.num_emitted = num_emitted
        # A stop sequence may still begin in the last tokens before a mask.
        self._held_back = max(map(len, params.stop_sequences), default=1) - 1
        self._stop: int | None = None  # Offset.
        self._sequence_found = False
        self._stop_mark = int(FinishMark.LENGTH)
        self._enter_block(0)

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def generated(self) -> np.ndarray:
        """Canvas tokens, masks included: ``[gen_length]``, int64."""
        return self.token_ids[self.prompt_len : self._canvas_end]

    @property
    def tail(self) -> np.ndarray:
        """Canvas and suffix tokens: ``[gen_length + suffix]``, int64."""
        return self.token_ids[self.prompt_len :]

    @property
    def index(self) -> StepIndex:
        """Which step comes next."""
        return StepIndex(self.step, self._block, self._step_in_block, self._stop)

    def masks(self) -> np.ndarray:
        """Masks of the canvas, ascending: ``[n]``, int64."""
        return self.prompt_len + self._mask_offsets()

    def keep_prompt(self, positions: np.ndarray) -> None:
        """Drop all prompt tokens but those at ``positions`` (``[P']``, ascending)."""
        self.token_ids = np.concatenate([self.token_ids[positions], self.tail])
        self.prompt_len = len(positions)

    def candidates(self, first: int = 0) -> np.ndarray:
        """Masks from position ``first`` on that this step may transfer, ascending:
        ``[n]``, int64.

        Masks of earlier blocks and of the prompt are among them; masks of later
        blocks and, once a stop was found, of everything from there on are not.
        """
        end = self._block_end if self._stop is None else self._stop
        limit = self.prompt_len + end
        masks = np.flatnonzero(self.token_ids[first:limit] == self.mask_token_id)
        return first + masks

    def transfer(
        self,
        candidates: np.ndarray,
        tokens: np.ndarray,
        confidence: torch.Tensor,
        predict: Predict,
        layout: Span | None = None,
    ) -> np.ndarray:
        """End the step: unmask the most confident candidates.

        Args:
            candidates: what :meth:`candidates` returned: ``[n]``.
            tokens: predicted token of each: ``[n]``, int64.
            confidence: of each: ``[n]``, float64, on the CPU.
            predict: predicts masks outside of the candidates; called only when
                there are fewer candidates than transfers.
            layout: positions from which the transfers are chosen; all if None.

        Returns:
            The positions that were transferred, ascending: ``[k]``.
        """
        count = self._num_transfers(confidence)
        layout = layout or Span(0, len(self))
        chosen = most_confident(confidence.numpy(), min(count, layout.length))
        if chosen is None:
            selected = self._transfer_by_layout(
                candidates, tokens, confidence, predict, count, layout
            )
        else:
            selected = candidates[chosen]
            self.token_ids[selected] = tokens[chosen]
        self.step += 1
        self._step_in_block += 1
        self._find_stop()
        self._advance()
        return selected

    def _transfer_by_layout(
        self,
        candidates: np.ndarray,
        tokens: np.ndarray,
        confidence: torch.Tensor,
        predict: Predict,
        count: int,
        layout: Span,
    ) -> np.ndarray:
        """Unmask what the official ranking of the whole layout selects: candidates that
        tie, and masks outside of them where they are too few."""
        selected = (
            layout.first
            + select_transfers(
                torch.from_numpy(candidates - layout.first),
                confidence,
                min(count, layout.length),
                layout.length,
            ).numpy()
        )
        selected = np.sort(selected[self.token_ids[selected] == self.mask_token_id])
        place = np.searchsorted(candidates, selected)
        known = place < len(candidates)
        known[known] = candidates[place[known]] == selected[known]
        self.token_ids[selected[known]] = tokens[place[known]]
        if not known.all():
            overflow = selected[~known]
            self.token_ids[overflow] = predict(overflow)
        return selected

    def take_output(self) -> list[int]:
        """Answer tokens that became final and were not emitted yet.

        The last list of a request ends with its :class:`FinishMark`.
        """
        num_final = self._num_final()
        output = self.generated[self.num_emitted : num_final].tolist()
        self.num_emitted += len(output)
        if not self.finished:
            return output
        suffix = list(self.params.suffix_token_ids)
        stopped = self._stop is not None and self._answer_len() == num_final
        mark = self._stop_mark if stopped else int(FinishMark.LENGTH)
        return [*output, *suffix[max(self.num_emitted - num_final, 0) :], mark]

    def _num_final(self) -> int:
        """Length of the answer's prefix that no later step can change or cut."""
        limit = min(self._answer_len(), self.params.max_answer_tokens)
        if self.finished:
            return limit
        masks = self._mask_offsets()
        prefix = int(masks[0]) if len(masks) else self.params.gen_length
        return max(min(prefix - self._held_back, limit), 0)

    @property
    def _canvas_end(self) -> int:
        """Position behind the canvas's last one."""
        return self.prompt_len + self.params.gen_length

    @property
    def _block_end(self) -> int:
        """Offset behind the current block's last position."""
        return self._block_start + self.params.block_length

    def _answer_len(self) -> int:
        return self.params.gen_length if self._stop is None else self._stop

    def _mask_offsets(self) -> np.ndarray:
        """Masks of the canvas, ascending: ``[n]``, int64."""
        return np.flatnonzero(self.generated == self.mask_token_id)

    def _num_masks(self, start: int, end: int) -> int:
        """Masks of the canvas between two offsets."""
        return int(np.count_nonzero(self.generated[start:end] == self.mask_token_id))

    def _enter_block(self, block: int) -> None:
        self._block = block
        self._block_start = block * self.params.block_length
        self._step_in_block = 0
        self._masks_to_share = self._num_masks(self._block_start, self._block_end)

    def _find_stop(self) -> None:
        """Move the stop to where a stop sequence stands in the canvas now.

        The request's own sequences follow the official search: in their order,
        and no further than the first one once any was found. The end token
        that bounds an answer by default is always looked for.
        """
        for index, sequence in enumerate(self.params.stop_sequences):
            start = find_sequence(self.generated, sequence)
            self._move_stop(start, FinishMark.STOP_STRING - index)
            self._sequence_found |= start is not None
            if self._sequence_found:
                break
        if self.params.end_token_id is not None:
            start = find_sequence(self.generated, (self.params.end_token_id,))
            self._move_stop(start, FinishMark.END_TOKEN)

    def _move_stop(self, start: int | None, mark: int) -> None:
        if start is None:
            return
        if self._stop is None or start < self._stop:
            self._stop = start
            self._stop_mark = mark

    def _advance(self) -> None:
        """Go to the next step that has something to do, or finish."""
        if self._stop is not None and self._num_masks(0, self._stop) == 0:
            self.finished = True
        elif self._num_final() == self.params.max_answer_tokens:
            # What follows is cut off and cannot change what precedes it.
            self.finished = True
        while not self.finished and not self._block_continues():
            next_start = self._block_end
            if next_start == self.params.gen_length or (
                self._stop is not None and self._stop <= next_start
            ):
                self.finished = True
            else:
                self._enter_block(self._block + 1)

    def _num_transfers(self, confidence: torch.Tensor) -> int:
        if not self.params.is_confident or len(confidence) == 0:
            return self._share()
        if self._step_in_block == self.params.steps_per_block - 1:
            return len(confidence)
        return num_confident(
            confidence,
            self.params.confidence_threshold or None,
            self.params.confidence_factor or None,
        )

    def _share(self) -> int:
        """How many masks this step transfers, where the steps of a block share them
        evenly."""
        steps = self.params.steps_per_block
        return transfer_count(self._masks_to_share, steps, self._step_in_block)

    def _block_continues(self) -> bool:
        return (
            self._step_in_block < self.params.steps_per_block
            # Shares never grow within a block: after a zero nothing happens.
            and (self.params.is_confident or self._share() > 0)
            # A stop can leave fewer candidates than transfers; the block may then
            # be filled past the stop before its steps are up.
            and self._num_masks(self._block_start, self._block_end) > 0
        )
