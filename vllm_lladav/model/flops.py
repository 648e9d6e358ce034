# SPDX-License-Identifier: Apache-2.0
"""How many floating-point operations the model spends on one request.

A formula from the shapes of the model and of the request, without engine or tensors:
what pruning saves can be told before anything runs. ``docs/pruning-cost.md`` derives
it; ``benchmarks/pruning_flops.py`` compares it with what the engine executes.

Counted are matrix products and convolutions, two operations per multiply and add,
as ``torch.utils.flop_counter`` counts them. Norms, rotary embeddings, activations and
softmax are not: they are linear in the tokens and small beside the products.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass

from vllm_lladav.denoising.params import DenoisingParams
from vllm_lladav.denoising.plan import (
    Segment,
    Step,
    StepIndex,
    StepPlan,
    transfer_count,
)
from vllm_lladav.model.shape import ModelShape
from vllm_lladav.pruning.params import PruningParams
from vllm_lladav.pruning.policies import policy_of
from vllm_lladav.pruning.policy import ViewShape


@dataclass(frozen=True)
class Breakdown:
    """Floating-point operations by part.

    Attributes:
        projections: linear layers of the decoder.
        attention: the products of queries with keys and of weights with values.
        head: logits of the masks that a step may transfer.
        scores: ranking visual tokens.
        vision: tower and projector, once for every tile.
    """

    projections: int = 0
    attention: int = 0
    head: int = 0
    scores: int = 0
    vision: int = 0

    def __add__(self, other: "Breakdown") -> "Breakdown":
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Breakdown(*(mine + theirs for mine, theirs in pairs))

    @property
    def total(self) -> int:
        return sum(astuple(self))


@dataclass(frozen=True)
class StepMasks:
    """Masks before a step.

    Attributes:
        index: of the step.
        candidates: that the step may transfer; their logits are computed.
        canvas: in the whole canvas.
    """

    index: StepIndex
    candidates: int
    canvas: int


def request_flops(
    shape: ModelShape,
    plan: StepPlan,
    num_tiles: int = 0,
    steps: Iterable[StepMasks] | None = None,
) -> Breakdown:
    """Operations of a request that runs alone.

    The prompt has no masks of its own. For ``adaptive`` pruning, which drops at least
    what the plan knows, it is an upper bound.

    Args:
        plan: lengths, steps and pruning of the request.
        num_tiles: of all its images, the squeezed whole image of each included.
        steps: that run, as in :func:`steps_of`.
    """
    decoder = (step_flops(shape, *step) for step in steps_of(plan, steps))
    return sum(decoder, vision_flops(shape, num_tiles))


def steps_of(
    plan: StepPlan, steps: Iterable[StepMasks] | None = None
) -> Iterator[tuple[Step, StepMasks]]:
    """The steps of a request, and the masks before each.

    Args:
        steps: that run, in order; by default all that are planned. A stop in the
            answer ends a request earlier, confidence decoding ends it in fewer steps.
    """
    num_visual = plan.num_visual
    for masks in planned_steps(plan.params) if steps is None else steps:
        step = plan.at(masks.index, num_visual)
        yield step, masks
        num_visual = step.num_visual_after


def step_flops(shape: ModelShape, step: Step, masks: StepMasks) -> Breakdown:
    """Of the decoder and its head in one step."""
    head = 2 * masks.candidates * shape.hidden_size * shape.vocab_rows
    total = Breakdown(head=head)
    width = shape.num_heads * shape.head_dim
    for segment in step.segments(shape.num_layers):
        rows = segment.num_rows * len(segment.layers)
        total += Breakdown(
            projections=2 * rows * shape.layer_weights,
            # Queries with keys, and weights with values.
            attention=2 * 2 * rows * segment.num_slots * width,
            scores=_score_flops(shape, step.plan.params.pruning, segment, masks),
        )
    return total


def planned_steps(
    params: DenoisingParams, steps_run: Sequence[int] | None = None
) -> Iterator[StepMasks]:
    """Every step of a request without stops.

    Blocks are finished one after the other, every step transfers its even share, and a
    block with fewer masks than steps ends early.

    Args:
        steps_run: how many steps of each block run, of the first ones. With confidence
            decoding they are taken to share the block's masks evenly. By default all.
    """
    num_steps = 0
    if steps_run is None:
        steps_run = [params.steps_per_block] * params.num_blocks
    for block, num_run in enumerate(steps_run):
        later = params.gen_length - (block + 1) * params.block_length
        left = params.block_length
        num_shares = num_run if params.is_confident else params.steps_per_block
        for step in range(num_run):
            count = transfer_count(params.block_length, num_shares, step)
            if not count:
                break  # Nor do later steps transfer anything.
            yield StepMasks(StepIndex(num_steps, block, step), left, left + later)
            num_steps += 1
            left -= count


def vision_flops(shape: ModelShape, num_tiles: int) -> Breakdown:
    """Of the tower and the projector."""
    if not num_tiles:
        return Breakdown()
    vision = shape.vision
    assert vision is not None
    width = vision.hidden_size
    layer = 4 * width**2 + 2 * width * vision.intermediate_size  # q, k, v, out; MLP
    layer += 2 * width * vision.tile_tokens  # attention among the tile's patches
    tower = width * vision.patch_values + vision.num_layers * layer
    projector = width * shape.hidden_size
    projector += (vision.projector_depth - 1) * shape.hidden_size**2
    return Breakdown(vision=2 * num_tiles * vision.tile_tokens * (tower + projector))


def _score_flops(
    shape: ModelShape,
    pruning: PruningParams | None,
    segment: Segment,
    masks: StepMasks,
) -> int:
    """Of what a policy computes after the layers of a segment that it observes."""
    if pruning is None or segment.stage is None:
        return 0
    policy, length = policy_of(pruning.policy), segment.num_slots
    seen = ViewShape(
        rows={"all": length, "answer": masks.canvas, "last": 1}[pruning.queries],
        length=length,
        num_visual=segment.num_visual,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
    )
    observed = [policy.observes(layer, segment.stage.layer) for layer in segment.layers]
    return sum(observed) * policy.flops(seen)
