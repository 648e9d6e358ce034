# SPDX-License-Identifier: Apache-2.0
"""A running request as a worker knows it, and a step of a batch of them."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from vllm_lladav.denoising.canvas import Canvas
from vllm_lladav.denoising.marks import PruneReport
from vllm_lladav.denoising.plan import Span, StepIndex, StepPlan
from vllm_lladav.pruning.params import PruneStage, PruningParams
from vllm_lladav.worker.attention import AttendedSequence
from vllm_lladav.worker.logprobs import CanvasLogprobs
from vllm_lladav.worker.prune_pass import PrunePass
from vllm_lladav.worker.scoring import Pruned

OnPruned = Callable[[str, Pruned], None]
"""Called with a request's id and what a stage did to it."""

OnStep = Callable[[str, StepIndex, int, int], None]
"""Called before a step's transfers: with a request's id, which step of it this is, how
many masks it may transfer, and how many are in its canvas."""


@dataclass
class DenoisingRequest:
    """One running request in this worker.

    Attributes:
        req_id: vLLM's.
        canvas: its tokens.
        plan: what its steps compute.
        generator: of its noise; None if nothing is random.
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
    """

    req_id: str
    canvas: Canvas
    plan: StepPlan
    generator: torch.Generator | None
    logprobs: CanvasLogprobs | None
    visual: torch.Tensor
    image_ids: torch.Tensor
    positions: torch.Tensor | None = None
    prompt_embeds: torch.Tensor | None = None
    prune_report: PruneReport | None = None
    on_pruned: OnPruned | None = None

    def __len__(self) -> int:
        """Tokens of a sequence that the step computes."""
        return self.computed.length

    @property
    def num_sequences(self) -> int:
        """2 if it is guided, else 1. The second is the unconditional twin: the same
        canvas behind a prompt of mask embeddings."""
        return self.plan.params.num_sequences

    @property
    def cfg_scale(self) -> float:
        return self.plan.params.cfg_scale

    @property
    def num_rows(self) -> int:
        """Rows of the request in the batch, sequence by sequence."""
        return self.num_sequences * len(self)

    def sequences(self, row: int, block_size: int) -> list[AttendedSequence]:
        """What attends in this step. ``row`` is the request's place in the batch."""
        length = len(self.canvas)
        num_blocks = -(-length // block_size)
        return [
            AttendedSequence(row, number * num_blocks, self.computed, length)
            for number in range(self.num_sequences)
        ]

    @property
    def computed(self) -> Span:
        """Positions that the step computes."""
        return self.plan.computed(self.canvas.index, len(self.visual))

    @property
    def layout(self) -> Span:
        """Positions from which the step's transfers are chosen: all of the sequence,
        as in the official code, or what the step computes, as in Fast-dLLM."""
        return self.computed if self.plan.follows_blocks else Span(0, len(self.canvas))

    @property
    def pruning(self) -> PruningParams | None:
        return self.plan.params.pruning

    @property
    def num_images(self) -> int:
        return len(self.plan.images)

    @property
    def seed(self) -> int | None:
        return self.plan.params.seed

    def stages(self) -> tuple[PruneStage, ...]:
        """What is pruned in the step that runs."""
        return self.plan.stages(self.canvas.step)

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
        prompt = pruned.positions[: -self.plan.params.num_tail_tokens]
        assert self.pruning is not None and self.prompt_embeds is not None
        if self.pruning.positions == "original":
            old = self.positions
            self.positions = pruned.positions if old is None else old[pruned.positions]
        self.prompt_embeds = self.prompt_embeds[prompt]
        self.canvas.keep_prompt(prompt.cpu().numpy())
        self.visual = torch.searchsorted(prompt, self.visual[pruned.kept])
        self.image_ids = self.image_ids[pruned.kept]
        spent = 0 if self.prune_report is None else self.prune_report.microseconds
        spent += round(pruned.seconds * 1e6)
        self.prune_report = PruneReport(len(self.visual), spent)
        if self.on_pruned is not None:
            self.on_pruned(self.req_id, pruned)

    def take_prune_report(self) -> PruneReport | None:
        report, self.prune_report = self.prune_report, None
        return report


@dataclass
class DenoisingStep:
    """One forward pass: who is in it and where their rows are.

    Attributes:
        requests: in batch order.
        prune_pass: prunes on the way through the layers.
        hidden_states: ``[num_tokens, hidden]``, after the final norm, of the tokens
            that are left; set by the model's forward.
    """

    requests: list[DenoisingRequest]
    prune_pass: PrunePass
    hidden_states: torch.Tensor | None = field(default=None, repr=False)

    def origins(self) -> list[int]:
        """The row of each request's position 0 in ``hidden_states``: negative, or in
        another request, where the step does not compute that position. Of a guided
        request it is that of the first sequence."""
        num_rows = [request.num_rows for request in self.requests]
        starts = np.cumsum([0, *num_rows])[:-1]
        first = [request.computed.first for request in self.requests]
        return (starts - first).tolist()
