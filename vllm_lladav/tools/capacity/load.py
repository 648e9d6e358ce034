# SPDX-License-Identifier: Apache-2.0
"""What the steps of a request ask of a machine: operations, and tokens to move."""

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Self

from vllm_lladav.denoising.plan import Step, StepPlan
from vllm_lladav.tools.flops import (
    ModelShape,
    StepMasks,
    planned_steps,
    step_flops,
    vision_flops,
)


@dataclass(frozen=True)
class Load:
    """What one step of one request, or of a batch of requests, asks for. Loads add up,
    and may be means: nothing is a whole number.

    Attributes:
        projections, attention, head, scores, vision: floating-point operations.
        rows: tokens that are computed, a mean over the layers.
        scheduled: the same before any are pruned: what the token budget counts.
        attended: tokens whose K/V are read, a mean over the layers.
        candidates: rows of logits.
        requests: that take part.
        encoding: requests whose images go through the vision tower.
    """

    projections: float = 0
    attention: float = 0
    head: float = 0
    scores: float = 0
    vision: float = 0
    rows: float = 0
    scheduled: float = 0
    attended: float = 0
    candidates: float = 0
    requests: float = 0
    encoding: float = 0

    def __add__(self, other: "Load") -> "Load":
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Load(*(mine + theirs for mine, theirs in pairs))

    def times(self, count: float) -> "Load":
        """The load of a batch that is ``count`` times as large."""
        return Load(*(count * value for value in astuple(self)))

    @classmethod
    def mean(cls, loads: "list[Load]") -> "Load":
        """The mean of at least one load."""
        return sum(loads, cls()).times(1 / len(loads))


@dataclass(frozen=True)
class RequestLoad:
    """All steps of a request.

    Attributes:
        steps: in order, with the vision tower in the first one.
        held: KV slots that it holds as each of them starts.
        is_full: whether each of them computes all tokens.
    """

    steps: tuple[Load, ...]
    held: tuple[int, ...]
    is_full: tuple[bool, ...]

    @classmethod
    def of(
        cls, shape: ModelShape, plan: StepPlan, num_tiles: int, block_size: int
    ) -> Self:
        """The steps of a request that no stop ends.

        Args:
            num_tiles: image tiles of all images together.
            block_size: KV slots of a KV block.
        """
        planned = list(_planned(plan))
        loads = [_load(shape, step, masks) for step, masks in planned]
        vision = vision_flops(shape, num_tiles).total
        loads[0] += Load(vision=vision, encoding=bool(num_tiles))
        return cls(
            steps=tuple(loads),
            held=tuple(step.num_held_slots(block_size) for step, _ in planned),
            is_full=tuple(step.is_full for step, _ in planned),
        )

    def kind(self, is_full: bool) -> tuple[float, Load]:
        """The share of the steps that are full, or are not, and their mean."""
        chosen = [
            load
            for load, full in zip(self.steps, self.is_full, strict=True)
            if full == is_full
        ]
        if not chosen:
            return 0.0, Load()
        return len(chosen) / len(self.steps), Load.mean(chosen)


def _planned(plan: StepPlan) -> Iterator[tuple[Step, StepMasks]]:
    """The steps of a request without stops, and the masks before each."""
    num_visual = plan.num_visual
    for masks in planned_steps(plan.params):
        step = plan.at(masks.index, num_visual)
        yield step, masks
        num_visual = step.num_visual_after


def _load(shape: ModelShape, step: Step, masks: StepMasks) -> Load:
    """The decoder's and the head's in one step."""
    flops = step_flops(shape, step, masks)
    rows = attended = 0
    for segment in step.segments(shape.num_layers):
        rows += segment.num_rows * len(segment.layers)
        attended += segment.num_slots * len(segment.layers)
    return Load(
        projections=flops.projections,
        attention=flops.attention,
        head=flops.head,
        scores=flops.scores,
        rows=rows / shape.num_layers,
        scheduled=step.num_rows,
        attended=step.plan.params.num_sequences * attended / shape.num_layers,
        candidates=masks.candidates,
        requests=1,
    )
