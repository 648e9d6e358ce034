# SPDX-License-Identifier: Apache-2.0
"""The canvases of all running requests.

A canvas is the state that the official ``generate_with_embeds`` loop keeps in local
variables: which positions are masks, and how far the request is. Those of all requests
stand in tensors with a row for each, on the device that runs the model, so that a
denoising step of a batch is a fixed number of operations
(:class:`~vllm_lladav.denoising.canvas_step.CanvasStep`) none of which waits for that
device.

Positions that can change have a column: the masks of the prompt (hardly ever any), the
canvas, and behind it the generation suffix, which does not change. Offsets, in which
blocks and stops are kept, count from the canvas's start; masks of the prompt have
negative ones.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import pad

from vllm_lladav.denoising.marks import FinishMark
from vllm_lladav.denoising.params import DenoisingParams
from vllm_lladav.denoising.plan import transfer_count
from vllm_lladav.denoising.stops import StopSequences
from vllm_lladav.denoising.to_device import to_device

NO_TOKEN = -1
"""Fills a row behind its last column, and stands for an end token that is not there."""


class Fixed(NamedTuple):
    """What stays as it is while a canvas is denoised: ``[n]``, int64 each.

    Attributes:
        num_prompt_masks: columns before the canvas.
        num_suffix: columns behind it.
        held_back: tokens before a mask in which a stop sequence may still begin.
        end_token: ends the answer; :data:`NO_TOKEN` to go on.
        is_confident: 1 if the number of transfers depends on the confidence.
        follows_blocks: 1 if what a step computes depends on the block.
        refresh_interval: steps from one that computes everything to the next.
    """

    num_prompt_masks: torch.Tensor
    gen_length: torch.Tensor
    num_suffix: torch.Tensor
    block_length: torch.Tensor
    steps_per_block: torch.Tensor
    max_answer_tokens: torch.Tensor
    held_back: torch.Tensor
    end_token: torch.Tensor
    is_confident: torch.Tensor
    follows_blocks: torch.Tensor
    refresh_interval: torch.Tensor


class Moving(NamedTuple):
    """What a step changes: ``[n]``, int64 each.

    Attributes:
        step: of the request, counted from 0.
        block: of the canvas that is worked on.
        step_in_block: of that block.
        masks_to_share: masks that the block had when it was entered.
        stop: offset at which the answer ends; ``gen_length`` while there is no stop.
        stop_mark: the :class:`FinishMark` of that stop.
        sequence_found: 1 once one of the request's own stop sequences was found.
        num_emitted: answer tokens that the scheduler has.
        finished: 1 or 0.
    """

    step: torch.Tensor
    block: torch.Tensor
    step_in_block: torch.Tensor
    masks_to_share: torch.Tensor
    stop: torch.Tensor
    stop_mark: torch.Tensor
    sequence_found: torch.Tensor
    num_emitted: torch.Tensor
    finished: torch.Tensor


class CanvasRequest(NamedTuple):
    """A request, for its canvas.

    Attributes:
        num_prompt_masks: masks in its prompt.
        num_emitted: answer tokens that the scheduler has already, after a preemption;
            they are not emitted again.
    """

    params: DenoisingParams
    num_prompt_masks: int = 0
    num_emitted: int = 0

    @property
    def num_columns(self) -> int:
        return self.num_prompt_masks + self.params.num_tail_tokens


class Batch:
    """What is known on the host of some requests whose steps run together.

    Attributes:
        slots: ``[n]``, int64.
        width: columns of the widest canvas, ``w``.
        columns: these, from 0: ``[w]``, int64.
        offsets: of the columns: ``[n or 1, w]``, int64.
        in_canvas: which columns are the canvas's: ``[n, w]``, bool.
        fixed: of each request.
        threshold: of confidence decoding: ``[n, 1]``, float64; infinite for none.
        factor: the same; minus infinity for none.
        stops: what is looked for in the canvases; None if nothing is.
        most_shared: positions that a step transfers at most where the steps of a block
            share its masks.
    """

    def __init__(
        self,
        slots: Sequence[int],
        requests: Sequence[CanvasRequest],
        device: torch.device,
    ) -> None:
        all_params = [request.params for request in requests]
        self.slots = to_device(slots, device)
        self.width = max(request.num_columns for request in requests)
        self.columns = torch.arange(self.width, device=device)
        numbers = [_fixed_of(request) for request in requests]
        self.fixed = Fixed(*to_device(numbers, device).unbind(1))
        self.offsets = self.columns[None]
        self.has_prompt_masks = any(r.num_prompt_masks for r in requests)
        if self.has_prompt_masks:
            self.offsets = self.offsets - self.fixed.num_prompt_masks[:, None]
        self.in_canvas = self.offsets < self.fixed.gen_length[:, None]
        self.in_canvas &= self.offsets >= 0
        self.is_confident = any(params.is_confident for params in all_params)
        self.has_suffix = any(params.suffix_token_ids for params in all_params)
        self.has_end_tokens = any(p.end_token_id is not None for p in all_params)
        self.follows_blocks = any(params.follows_blocks for params in all_params)
        self.most_shared = max(
            transfer_count(params.block_length, params.steps_per_block, 0)
            for params in all_params
        )
        rules = [
            [
                params.confidence_threshold or math.inf,
                params.confidence_factor or -math.inf,
            ]
            for params in all_params
        ]
        rule = to_device(rules, device, torch.float64)
        self.threshold, self.factor = rule.split(1, dim=1)
        self.stops = StopSequences.of(
            [params.stop_sequences for params in all_params], device
        )


class Canvases:
    """The canvases of all running requests, by slot.

    Args:
        mask_token_id: of the checkpoint.
        num_slots: requests that run at once, at most.

    Attributes:
        tokens: ``[num_slots, columns]``, int64.
        moving: ``[num_slots, fields of Moving]``, int64.
    """

    def __init__(
        self, mask_token_id: int, num_slots: int, device: torch.device
    ) -> None:
        self.mask_token_id = mask_token_id
        self.tokens = torch.empty((num_slots, 0), dtype=torch.int64, device=device)
        self.moving = torch.zeros(
            (num_slots, len(Moving._fields)), dtype=torch.int64, device=device
        )
        self._requests: dict[int, CanvasRequest] = {}
        self._batch: tuple[tuple[int, ...], Batch] | None = None

    def add(self, slot: int, request: CanvasRequest) -> None:
        """A new canvas, all masks, in place of what was in ``slot``."""
        self._requests[slot] = request
        self._batch = None
        params = request.params
        missing = request.num_columns - self.tokens.shape[1]
        if missing > 0:
            self.tokens = pad(self.tokens, (0, missing), value=NO_TOKEN)
        suffix = params.suffix_token_ids
        row = [self.mask_token_id] * (request.num_columns - len(suffix)) + [*suffix]
        row += [NO_TOKEN] * (self.tokens.shape[1] - len(row))
        self.tokens[slot] = to_device(row, self.tokens.device)
        start = dict.fromkeys(Moving._fields, 0) | {
            "masks_to_share": params.block_length,
            "stop": params.gen_length,
            "stop_mark": int(FinishMark.LENGTH),
            "num_emitted": request.num_emitted,
        }
        numbers = [start[name] for name in Moving._fields]
        self.moving[slot] = to_device(numbers, self.moving.device)

    def masks_of(self, slot: int) -> torch.Tensor:
        """Offsets of the masks in one canvas: ``[r]``, int64, ascending. Waits for the
        device."""
        request = self._requests[slot]
        first = request.num_prompt_masks
        canvas = self.tokens[slot, first : first + request.params.gen_length]
        return (canvas == self.mask_token_id).nonzero()[:, 0]

    def batch(self, slots: Sequence[int]) -> Batch:
        """The requests in ``slots``; made anew only if these are others than before."""
        key = tuple(slots)
        if self._batch is None or self._batch[0] != key:
            requests = [self._requests[slot] for slot in key]
            self._batch = key, Batch(key, requests, self.tokens.device)
        return self._batch[1]


def _fixed_of(request: CanvasRequest) -> tuple[int, ...]:
    """One row of :class:`Fixed`."""
    params = request.params
    end_token = NO_TOKEN if params.end_token_id is None else params.end_token_id
    values = {
        "num_prompt_masks": request.num_prompt_masks,
        "gen_length": params.gen_length,
        "num_suffix": len(params.suffix_token_ids),
        "block_length": params.block_length,
        "steps_per_block": params.steps_per_block,
        "max_answer_tokens": params.max_answer_tokens,
        "held_back": max(map(len, params.stop_sequences), default=1) - 1,
        "end_token": end_token,
        "is_confident": int(params.is_confident),
        "follows_blocks": int(params.follows_blocks),
        "refresh_interval": params.refresh_interval,
    }
    return tuple(values[name] for name in Fixed._fields)
