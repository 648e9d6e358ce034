# SPDX-License-Identifier: Apache-2.0
"""What the steps of a request ask of a machine: operations, and tokens to move."""

from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from typing import Self

from vllm_lladav.denoising.plan import StepPlan
from vllm_lladav.pruning.params import num_kept
from vllm_lladav.tools.flops import (
    Breakdown,
    ModelShape,
    StepMasks,
    planned_steps,
    request_flops,
    vision_flops,
)


@dataclass(frozen=True)
class Load:
    """Of one step of one request, or of a batch of them. Loads add up, and may be
    means: nothing is a whole number.

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
        """Of ``count`` as large a batch."""
        return Load(*(count * value for value in astuple(self)))

    @classmethod
    def mean(cls, loads: "list[Load]") -> "Load":
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
        """
        Args:
            num_tiles: of all images.
            block_size: KV slots of a block.
        """
        masks = list(planned_steps(plan.params))
        left = list(_visual_before(plan, masks))
        loads = [
            _step(shape, plan, num_visual, step)
            for num_visual, step in zip(left, masks, strict=True)
        ]
        vision = vision_flops(shape, num_tiles).total
        loads[0] += Load(vision=vision, encoding=bool(num_tiles))
        return cls(
            steps=tuple(loads),
            held=tuple(plan.num_held_slots(count, block_size) for count in left),
            is_full=tuple(plan.is_full(step.index) for step in masks),
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


def _visual_before(plan: StepPlan, masks: list[StepMasks]) -> Iterator[int]:
    """Visual tokens that are left before each step."""
    num_visual = plan.num_visual
    for step in masks:
        yield num_visual
        num_visual = plan.visual_after(step.index.step, num_visual)


def _step(shape: ModelShape, plan: StepPlan, num_visual: int, masks: StepMasks) -> Load:
    """The decoder's and the head's load in one step."""
    flops = _flops(shape, plan, num_visual, masks)
    rows = attended = 0
    for length, computed, num_layers in _layers(shape, plan, num_visual, masks):
        rows += computed * num_layers
        attended += length * num_layers
    sequences = plan.params.num_sequences
    return Load(
        projections=flops.projections,
        attention=flops.attention,
        head=flops.head,
        scores=flops.scores,
        rows=sequences * rows / shape.num_layers,
        scheduled=sequences * plan.computed(masks.index, num_visual).length,
        attended=sequences * attended / shape.num_layers,
        candidates=masks.candidates,
        requests=1,
    )


def _flops(
    shape: ModelShape, plan: StepPlan, num_visual: int, masks: StepMasks
) -> Breakdown:
    """Of one step that ``num_visual`` visual tokens enter."""
    return request_flops(shape, _plan_left(plan, num_visual), steps=[masks])


def _plan_left(plan: StepPlan, num_visual: int) -> StepPlan:
    """The plan of a request as it is once ``num_visual`` visual tokens are left."""
    num_pruned = plan.num_visual - num_visual
    if not num_pruned:
        return plan
    pruning = plan.params.pruning
    assert pruning is not None
    # Whether there are enough to prune was decided on those of the whole request.
    params = replace(plan.params, pruning=replace(pruning, min_visual_tokens=0))
    # Only their number counts, and every image has one at least.
    others = (1,) * (len(plan.images) - 1)
    images = (num_visual - len(others), *others)
    return StepPlan(params, plan.prompt_len - num_pruned, images)


def _layers(
    shape: ModelShape, plan: StepPlan, num_visual: int, masks: StepMasks
) -> Iterator[tuple[int, int, int]]:
    """(tokens, those that are computed, layers) from stage to stage of a step."""
    done = 0
    for stage in (*plan.stages(masks.index.step), None):
        until = shape.num_layers if stage is None else stage.layer
        length = plan.num_slots(num_visual)
        yield length, plan.computed(masks.index, num_visual).length, until - done
        done = until
        if stage is not None:
            num_visual = num_kept(num_visual, len(plan.images), stage.rate)
