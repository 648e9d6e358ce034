# SPDX-License-Identifier: Apache-2.0
"""One denoising step of a batch of canvases.

The arithmetic of the official ``generate_with_embeds`` loop for many requests at once,
without a word about engines or logits: a step names the positions that need a
prediction (:attr:`CanvasStep.candidates`), takes the predictions
(:meth:`CanvasStep.transfer`), goes to what comes next (:meth:`CanvasStep.advance`) and
tells what of the answers became final (:meth:`CanvasStep.emit`).

Everything is a deterministic function of the request and the predictions, so all
tensor-parallel ranks, and a preempted request that starts again, agree. The host is
never asked.
"""

from typing import NamedTuple

import torch

from vllm_lladav.denoising.canvas import Batch, Canvases, Moving
from vllm_lladav.denoising.marks import NOTHING, FinishMark
from vllm_lladav.denoising.unmasking import (
    UNSET,
    Ranking,
    first_offset,
    most_confident,
    num_confident,
    shared_transfers,
)


class Emitted(NamedTuple):
    """What became final in a step.

    Attributes:
        tokens: ``[n, w]``, int64: answer tokens, and the suffix of requests that are
            done; arbitrary behind the last one.
        counts: ``[n]``, int64: how many of them.
        finish: ``[n]``, int64: :class:`FinishMark` of requests that are done, else
            :data:`NOTHING`.
    """

    tokens: torch.Tensor
    counts: torch.Tensor
    finish: torch.Tensor


class _Following(NamedTuple):
    """The block behind the one that is worked on: ``[n]``, int64 each."""

    block: torch.Tensor
    start: torch.Tensor
    num_masks: torch.Tensor


class CanvasStep:
    """
    Args:
        batch: whose step it is.
        first: ``[n]``, int64: offset from which on masks may be transferred; None if
            all may.

    Attributes:
        tokens: ``[n, w]``, int64; masks where nothing was decided yet.
        moving: how far each request is.
        was_running: ``[n]``, bool. A request may have ended while this step was
            already under way: it has no candidates and emits nothing.
        candidates: ``[n, w]``, bool: masks that this step may transfer. Those of
            earlier blocks and of the prompt are among them; those of later blocks and,
            once a stop was found, of everything from there on are not.
        counts: ``[n]``, int64: transfers that the step wants; the ones below too are
            set by :meth:`transfer`.
        scores: ``[n, w]``, float64: what ranks the candidates; minus infinity
            elsewhere.
        predicted: ``[n, w]``, int64: tokens at the candidates.
        is_broken: ``[n]``, bool: the model is sure of a candidate by no number. The
            request ends with an error.
        num_final: ``[n]``, int64: length of the answer's prefix that no later step can
            change or cut; set by :meth:`advance`.
        emitted_before: ``[n]``, int64: answer tokens that the scheduler had; the same.
    """

    counts: torch.Tensor
    scores: torch.Tensor
    predicted: torch.Tensor
    is_broken: torch.Tensor
    num_final: torch.Tensor
    emitted_before: torch.Tensor

    def __init__(
        self, canvases: Canvases, batch: Batch, first: torch.Tensor | None
    ) -> None:
        self.batch = batch
        self._canvases = canvases
        self.mask_token_id = canvases.mask_token_id
        self.tokens = canvases.tokens[:, : batch.width][batch.slots]
        self.moving = Moving(*canvases.moving[batch.slots].unbind(1))
        self.was_running = self.moving.finished == 0
        self.candidates = self._transferable(first)

    def transfer(
        self,
        places: torch.Tensor,
        tokens: torch.Tensor,
        confidence: torch.Tensor,
        most: int,
    ) -> Ranking:
        """Unmask the most confident candidates.

        Args:
            places: ``[r]``, int64: of the candidates, in ``candidates.flatten()``; -1
                for none.
            tokens: predicted at each: ``[r]``, int64.
            confidence: of each: ``[r]``, float64.
            most: candidates of a request, at most.

        Returns:
            What was chosen.
        """
        shape, batch = self.candidates.shape, self.batch
        size = self.candidates.numel()
        predicted = _scattered(size, places, tokens, self.mask_token_id).view(shape)
        scores = _scattered(size, places, confidence, -torch.inf).view(shape)
        width = batch.most_shared
        if batch.is_confident:
            width = max(width, most)
        ranked = scores.topk(min(width, shape[1]), dim=1).values
        self.counts = self._num_transfers(ranked)
        self.scores, self.predicted = scores, predicted
        self.is_broken = scores.isnan().any(dim=1)
        ranking = most_confident(scores, ranked, self.counts)
        self.tokens = torch.where(ranking.chosen, predicted, self.tokens)
        needs_none = self.is_broken | ~self.was_running
        return ranking._replace(is_clear=ranking.is_clear | needs_none)

    def advance(self) -> None:
        """Go to the next step that has something to do, or finish."""
        before, fixed, offsets = self.moving, self.batch.fixed, self.batch.offsets
        stop, mark, sequence_found = self._found_stop()
        masks = self.batch.in_canvas & (self.tokens == self.mask_token_id)
        first_mask = first_offset(masks, offsets)
        num_final = self._num_final(first_mask, stop)
        # What follows an answer of full length is cut off and cannot change it.
        is_done = num_final == fixed.max_answer_tokens
        is_done |= (stop < fixed.gen_length) & (first_mask >= stop)

        continues = self._block_continues(masks)
        following = self._following_block(masks)
        is_done |= ~continues & (stop <= following.start)
        is_done |= self.is_broken
        stays = continues | is_done
        self.num_final = torch.where(
            is_done, torch.minimum(stop, fixed.max_answer_tokens), num_final
        )
        self.moving = Moving(
            step=before.step + 1,
            block=torch.where(stays, before.block, following.block),
            step_in_block=torch.where(stays, before.step_in_block + 1, 0),
            masks_to_share=torch.where(
                stays, before.masks_to_share, following.num_masks
            ),
            stop=stop,
            stop_mark=mark,
            sequence_found=sequence_found,
            num_emitted=torch.maximum(before.num_emitted, self.num_final),
            finished=before.finished | is_done,
        )
        self.emitted_before = before.num_emitted
        self._write()

    def emit(self) -> Emitted:
        """What :meth:`advance` made final."""
        fixed, moving, batch = self.batch.fixed, self.moving, self.batch
        finished = moving.finished == 1
        end = self.num_final
        if batch.has_suffix:
            end = end + torch.where(finished, fixed.num_suffix, 0)
        counts = (end - self.emitted_before).clamp(min=0)
        offset = self.emitted_before[:, None] + batch.columns
        if batch.has_suffix:
            behind = offset + (fixed.gen_length - self.num_final)[:, None]
            offset = torch.where(offset < self.num_final[:, None], offset, behind)
        if batch.has_prompt_masks:
            offset = offset + fixed.num_prompt_masks[:, None]
        stopped = (moving.stop < fixed.gen_length) & (moving.stop == self.num_final)
        mark = torch.where(stopped, moving.stop_mark, int(FinishMark.LENGTH))
        mark = mark.masked_fill(self.is_broken, int(FinishMark.NOT_FINITE))
        return Emitted(
            tokens=self.tokens.gather(1, offset.clamp(max=batch.width - 1)),
            counts=counts.masked_fill(self.is_broken | ~self.was_running, 0),
            finish=torch.where(finished & self.was_running, mark, NOTHING),
        )

    def computed_first(
        self, planned: torch.Tensor, prompt_len: torch.Tensor
    ) -> torch.Tensor:
        """Position from which on the next step computes its tokens: ``[n]``, int64.

        Args:
            planned: ``[n]``, int64: what the plan says of it; negative where it follows
                from the block.
            prompt_len: ``[n]``, int64: of the requests as they are now.
        """
        if not self.batch.follows_blocks:
            return planned
        fixed, moving = self.batch.fixed, self.moving
        behind = prompt_len + moving.block * fixed.block_length
        is_refresh = moving.step_in_block % fixed.refresh_interval == 0
        first = torch.where(is_refresh, 0, behind)
        return torch.where(planned < 0, first, planned)

    def num_candidates_next(self, first: torch.Tensor | None) -> torch.Tensor:
        """Candidates of the next step: ``[n]``, int64. ``first`` is that step's."""
        return self._transferable(first).sum(dim=1)

    def _transferable(self, first: torch.Tensor | None) -> torch.Tensor:
        """``[n, w]``, bool: masks that a step may transfer, from ``first`` on."""
        fixed, moving, offsets = self.batch.fixed, self.moving, self.batch.offsets
        end = torch.minimum((moving.block + 1) * fixed.block_length, moving.stop)
        end = end.masked_fill(moving.finished == 1, -UNSET)
        found = (self.tokens == self.mask_token_id) & (offsets < end[:, None])
        return found if first is None else found & (offsets >= first[:, None])

    def _num_transfers(self, ranked: torch.Tensor) -> torch.Tensor:
        """``[n]``, int64, given the confidences of the best candidates."""
        fixed, moving, batch = self.batch.fixed, self.moving, self.batch
        counts = shared_transfers(
            moving.masks_to_share, fixed.steps_per_block, moving.step_in_block
        )
        if not batch.is_confident:
            return counts
        num_candidates = self.candidates.sum(dim=1)
        allowed = num_confident(ranked, batch.threshold, batch.factor)
        is_last = moving.step_in_block == fixed.steps_per_block - 1
        allowed = torch.where(is_last, num_candidates, allowed)
        is_allowed = (fixed.is_confident == 1) & (num_candidates > 0)
        return torch.where(is_allowed, allowed, counts)

    def _found_stop(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Stop, its mark, and whether a sequence was found: where they are now.

        The request's own sequences follow the official search. The end token that
        bounds an answer by default is always looked for.
        """
        batch, offsets = self.batch, self.batch.offsets
        moving = self.moving
        stop, mark, sequence_found = (
            moving.stop,
            moving.stop_mark,
            moving.sequence_found,
        )
        stops = batch.stops
        if stops is not None:
            rows = stops.rows
            own = offsets if len(offsets) == 1 else offsets[rows]
            starts = stops.find(self.tokens[rows], own, batch.fixed.gen_length[rows])
            start, its_mark = stops.first_found(starts, sequence_found[rows] == 1)
            moves = start < stop[rows]
            mark = mark.index_put((rows,), torch.where(moves, its_mark, mark[rows]))
            stop = stop.index_put((rows,), torch.minimum(start, stop[rows]))
            sequence_found = sequence_found.index_put(
                (rows,), sequence_found[rows] | (start < UNSET)
            )
        if batch.has_end_tokens:
            is_end = self.tokens == batch.fixed.end_token[:, None]
            start = first_offset(is_end & batch.in_canvas, offsets)
            mark = torch.where(start < stop, int(FinishMark.END_TOKEN), mark)
            stop = torch.minimum(start, stop)
        return stop, mark, sequence_found

    def _block_continues(self, masks: torch.Tensor) -> torch.Tensor:
        """``[n]``, bool: whether the block of this step has another one, given the
        ``masks`` (``[n, w]``, bool) of the canvases after it."""
        fixed, moving, offsets = self.batch.fixed, self.moving, self.batch.offsets
        step_in_block = moving.step_in_block + 1
        # Shares never grow within a block: after a zero nothing happens.
        share = shared_transfers(
            moving.masks_to_share, fixed.steps_per_block, step_in_block
        )
        start = moving.block * fixed.block_length
        first_left = first_offset(masks & (offsets >= start[:, None]), offsets)
        return (
            (step_in_block < fixed.steps_per_block)
            & ((fixed.is_confident == 1) | (share > 0))
            # A stop can leave fewer candidates than transfers; the block may then be
            # filled past the stop before its steps are up.
            & (first_left < start + fixed.block_length)
        )

    def _following_block(self, masks: torch.Tensor) -> _Following:
        """The next block with masks. Without one, its start is beyond every stop."""
        fixed, offsets = self.batch.fixed, self.batch.offsets
        end = (self.moving.block + 1) * fixed.block_length
        next_mask = first_offset(masks & (offsets >= end[:, None]), offsets)
        block = torch.div(next_mask, fixed.block_length, rounding_mode="floor")
        start = block * fixed.block_length
        end = start + fixed.block_length
        inside = masks & (offsets >= start[:, None]) & (offsets < end[:, None])
        return _Following(block, start, inside.sum(dim=1))

    def _num_final(self, first_mask: torch.Tensor, stop: torch.Tensor) -> torch.Tensor:
        """Length of the answer's prefix that no later step can change or cut: ``[n]``,
        as long as the request is not done."""
        fixed = self.batch.fixed
        prefix = torch.minimum(first_mask, fixed.gen_length) - fixed.held_back
        limit = torch.minimum(stop, fixed.max_answer_tokens)
        return torch.minimum(prefix, limit).clamp(min=0)

    def _write(self) -> None:
        """Back to the slots."""
        canvases, slots = self._canvases, self.batch.slots
        canvases.tokens[:, : self.batch.width].index_copy_(0, slots, self.tokens)
        canvases.moving.index_copy_(0, slots, torch.stack(self.moving, dim=1))


def _scattered(
    size: int, places: torch.Tensor, values: torch.Tensor, fill: float
) -> torch.Tensor:
    """``[size]``: ``values`` at their ``places``, ``fill`` elsewhere."""
    # The last one takes what stands at no place.
    row = torch.full((size + 1,), fill, dtype=values.dtype, device=values.device)
    row[places] = values
    return row[:-1]
