# SPDX-License-Identifier: Apache-2.0
"""A running request as a worker knows it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from vllm_lladav.denoising.marks import PruneReport
from vllm_lladav.denoising.params import DenoisingParams
from vllm_lladav.denoising.plan import Step, StepIndex, StepPlan
from vllm_lladav.pruning.params import PruneStage, PruningParams
from vllm_lladav.worker.attention import AttendedSequence
from vllm_lladav.worker.frames import WatchedVisual
from vllm_lladav.worker.logprobs import CanvasLogprobs
from vllm_lladav.worker.scoring import Pruned

OnPruned = Callable[[str, Pruned], None]
"""Called with a request's id and what a stage did to it."""

MasksOf = Callable[[int], torch.Tensor]
"""Offsets of the masks in the canvas at a slot: ``[r]``, int64."""


@dataclass
class DenoisingRequest:
    """One running request in this worker, without what the device decides.

    Its canvas is in :class:`~vllm_lladav.denoising.canvas.Canvases`; what is known here
    of its progress is behind, by the steps whose report was not read yet.

    Attributes:
        req_id: vLLM's.
        slot: vLLM's, of this request in the worker's tensors.
        plan: what its steps compute.
        prompt_token_ids: ``[P]``, int64; image placeholders are ordinary ids here.
        logprobs: of the canvas tokens; None if the client asked for none.
        visual: ``[m]``, int64: positions of the visual tokens that are left.
        image_ids: ``[m]``, int64: the image of each.
        prompt_masks: ``[k]``, int64: positions of the masks in the prompt.
        masks_of: looks into the canvas.
        positions: ``[n]``, int64: of all its tokens, for the rotary embedding; None
            while they are 0 to n - 1.
        prompt_embeds: ``[P, hidden]``, visual tokens merged in. Made at the
            first step and kept, because every full step needs it and the
            encoder cache lets go of the images after the first.
        prune_report: of the step that runs.
        on_pruned: tells an observer.
        watched: the visual tokens as frames show them; None if no client watches.
        step: the last one whose forward pass began. Where it prunes, it gets shorter
            on the way.
    """

    req_id: str
    slot: int
    plan: StepPlan
    prompt_token_ids: np.ndarray
    logprobs: CanvasLogprobs | None
    visual: torch.Tensor
    image_ids: torch.Tensor
    prompt_masks: torch.Tensor
    masks_of: MasksOf
    positions: torch.Tensor | None = None
    prompt_embeds: torch.Tensor | None = None
    prune_report: PruneReport | None = None
    on_pruned: OnPruned | None = None
    watched: WatchedVisual | None = None
    step: Step = field(init=False)

    def __post_init__(self) -> None:
        self._index = StepIndex(0, 0, 0)
        self._num_unread = 0
        self._num_candidates = self.num_prompt_masks + self.params.block_length
        self.begin_step()

    def __len__(self) -> int:
        """Tokens of a sequence that the step computes."""
        return self.step.computed.length

    @property
    def prompt_len(self) -> int:
        """Tokens that are left of the prompt."""
        return self.step.num_slots - self.params.num_tail_tokens

    @property
    def num_prompt_masks(self) -> int:
        return len(self.prompt_masks)

    @property
    def most_candidates(self) -> int:
        """Masks that the step may transfer, at most."""
        params = self.params
        # A step that is not known of may have gone on to the next block.
        several = params.block_length if params.num_blocks > 1 else 0
        most = self._num_candidates + self._num_unread * several
        return min(most, self.num_prompt_masks + params.gen_length)

    def begin_step(self) -> None:
        """Fix the step that is computed: its forward pass begins."""
        self.step = self.plan.at(self._index, len(self.visual))

    def planned_first(self) -> int:
        """Position from which on the step after this one computes; -1 where that is up
        to the canvas."""
        if self.params.cache == "none":
            return 0
        step = self.plan.at(self._next_index, len(self.visual))
        if self.plan.follows_blocks and not step.stages:
            return -1
        return step.computed.first

    def end_step(self) -> None:
        """The step is done, as far as the host is concerned."""
        self._index = self._next_index
        self._num_unread += 1

    def learn(
        self, num_candidates: int, block: int, step_in_block: int, stop: int
    ) -> None:
        """What the report of the next step in turn says of the one behind it."""
        self._num_unread -= 1
        self._num_candidates = num_candidates
        if self.plan.follows_blocks:
            stands = stop if stop < self.params.gen_length else None
            self._index = StepIndex(self._index.step, block, step_in_block, stands)

    @property
    def _next_index(self) -> StepIndex:
        number, block, step_in_block, stop = self._index
        return StepIndex(number + 1, block, step_in_block + 1, stop)

    @property
    def params(self) -> DenoisingParams:
        return self.plan.params

    @property
    def num_sequences(self) -> int:
        """2 if it is guided, else 1. The second is the unconditional twin: the same
        canvas behind a prompt of mask embeddings."""
        return self.params.num_sequences

    @property
    def cfg_scale(self) -> float:
        return self.params.cfg_scale

    def sequences(self, row: int, block_size: int) -> list[AttendedSequence]:
        """What attends in this step. ``row`` is the request's place in the batch."""
        length = self.step.num_slots
        num_kv_blocks = -(-length // block_size)
        return [
            AttendedSequence(row, number * num_kv_blocks, self.step.computed, length)
            for number in range(self.num_sequences)
        ]

    @property
    def pruning(self) -> PruningParams | None:
        return self.params.pruning

    @property
    def num_images(self) -> int:
        return len(self.plan.visual_lengths)

    @property
    def seed(self) -> int | None:
        return self.params.seed

    def stages(self) -> tuple[PruneStage, ...]:
        """What is pruned in the step that runs."""
        return self.step.stages

    def attention_rows(self, queries: str) -> torch.Tensor:
        """Positions whose attention counts for ``queries``: ``[r]``, int64."""
        device, prompt_len = self.visual.device, self.prompt_len
        if queries == "last":
            return torch.full((1,), self.step.num_slots - 1, device=device)
        if queries == "all":
            return torch.arange(self.step.num_slots, device=device)
        if self._index.step == 0:
            end = prompt_len + self.params.gen_length
            return torch.arange(prompt_len, end, device=device)
        return prompt_len + self.masks_of(self.slot)

    def keep_visual(self, pruned: Pruned) -> None:
        """Forget the visual tokens that are not kept; all positions move up."""
        prompt = pruned.positions[: -self.params.num_tail_tokens]
        assert self.pruning is not None and self.prompt_embeds is not None
        if self.pruning.positions == "original":
            old = self.positions
            self.positions = pruned.positions if old is None else old[pruned.positions]
        self.prompt_embeds = self.prompt_embeds[prompt]
        if self.num_prompt_masks:
            self.prompt_masks = torch.searchsorted(prompt, self.prompt_masks)
        self.visual = torch.searchsorted(prompt, self.visual[pruned.kept])
        self.image_ids = self.image_ids[pruned.kept]
        self.step = self.plan.at(self.step.index, len(self.visual))
        spent = 0 if self.prune_report is None else self.prune_report.microseconds
        spent += round(pruned.seconds * 1e6)
        self.prune_report = PruneReport(len(self.visual), spent)
        if self.watched is not None:
            self.watched.keep(pruned.kept)
        if self.on_pruned is not None:
            self.on_pruned(self.req_id, pruned)

    def take_prune_report(self) -> PruneReport | None:
        report, self.prune_report = self.prune_report, None
        return report
