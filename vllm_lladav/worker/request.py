# SPDX-License-Identifier: Apache-2.0
"""A running request as a worker knows it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from vllm_lladav.denoising.canvas import Canvas
from vllm_lladav.denoising.marks import PruneReport
from vllm_lladav.denoising.params import DenoisingParams
from vllm_lladav.denoising.plan import Step, StepPlan
from vllm_lladav.pruning.params import PruneStage, PruningParams
from vllm_lladav.worker.attention import AttendedSequence
from vllm_lladav.worker.contract import DenoisingModel
from vllm_lladav.worker.logprobs import CanvasLogprobs
from vllm_lladav.worker.scoring import Pruned

OnPruned = Callable[[str, Pruned], None]
"""Called with a request's id and what a stage did to it."""


@dataclass
class DenoisingRequest:
    """One running request in this worker.

    Attributes:
        req_id: vLLM's.
        canvas: its tokens.
        plan: what its steps compute.
        logprobs: of the canvas tokens; None if the client asked for none.
        visual: ``[m]``, int64: positions of the visual tokens that are left.
        image_ids: ``[m]``, int64: the image of each.
        positions: ``[n]``, int64: of all its tokens, for the rotary embedding; None
            while they are 0 to n - 1.
        prompt_embeds: ``[P, hidden]``, visual tokens merged in. Made at the
            first step and kept, because every full step needs it and the
            encoder cache lets go of the images after the first.
        prune_report: of the step that runs.
        on_pruned: tells an observer.
        step: the last one whose forward pass began. Where it prunes, it gets shorter
            on the way.
    """

    req_id: str
    canvas: Canvas
    plan: StepPlan
    logprobs: CanvasLogprobs | None
    visual: torch.Tensor
    image_ids: torch.Tensor
    positions: torch.Tensor | None = None
    prompt_embeds: torch.Tensor | None = None
    prune_report: PruneReport | None = None
    on_pruned: OnPruned | None = None
    step: Step = field(init=False)

    def __post_init__(self) -> None:
        self.begin_step()

    def __len__(self) -> int:
        """Tokens of a sequence that the step computes."""
        return self.step.computed.length

    def next_step(self) -> Step:
        """The one that the canvas is ready for."""
        return self.plan.at(self.canvas.index, len(self.visual))

    def begin_step(self) -> None:
        """Fix the step that is computed: its forward pass begins."""
        self.step = self.next_step()

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
        if queries == "answer":
            rows = torch.from_numpy(self.canvas.masks())
        elif queries == "last":
            rows = torch.tensor([len(self.canvas) - 1])
        else:
            rows = torch.arange(len(self.canvas))
        return rows.to(self.visual.device)

    def keep_visual(self, pruned: Pruned) -> None:
        """Forget the visual tokens that are not kept; all positions move up."""
        prompt = pruned.positions[: -self.params.num_tail_tokens]
        assert self.pruning is not None and self.prompt_embeds is not None
        if self.pruning.positions == "original":
            old = self.positions
            self.positions = pruned.positions if old is None else old[pruned.positions]
        self.prompt_embeds = self.prompt_embeds[prompt]
        self.canvas.keep_prompt(prompt.cpu().numpy())
        self.visual = torch.searchsorted(prompt, self.visual[pruned.kept])
        self.image_ids = self.image_ids[pruned.kept]
        self.step = self.plan.at(self.step.index, len(self.visual))
        spent = 0 if self.prune_report is None else self.prune_report.microseconds
        spent += round(pruned.seconds * 1e6)
        self.prune_report = PruneReport(len(self.visual), spent)
        if self.on_pruned is not None:
            self.on_pruned(self.req_id, pruned)

    def take_prune_report(self) -> PruneReport | None:
        report, self.prune_report = self.prune_report, None
        return report

    def overwrite_prompt(self, positions: np.ndarray, model: DenoisingModel) -> None:
        """Masks in the prompt at ``positions`` (``[n]``) became tokens."""
        assert self.prompt_embeds is not None
        device = self.prompt_embeds.device
        token_ids = torch.from_numpy(self.canvas.token_ids[positions]).to(device)
        rows = torch.from_numpy(positions).to(device)
        self.prompt_embeds[rows] = model.embed_input_ids(token_ids)
