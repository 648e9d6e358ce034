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
from vllm_lladav.denoising.plan import Step, StepIndex, StepPlan, transfer_count
from vllm_lladav.model.shape import ModelShape
from vllm_lladav.pruning.params import PruneStage, PruningParams
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

    def saved(self, whole: "Breakdown") -> float:
        """The share of ``whole`` that is saved, 0 to 1."""
        return 1 - self.total / whole.total


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
        steps: that run, in order; by default all that are planned. A stop in the
            answer ends a request earlier, confidence decoding ends it in fewer steps.
    """
    total = vision_flops(shape, num_tiles)
    num_visual = plan.num_visual
    for masks in planned_steps(plan.params) if steps is None else steps:
        step = plan.at(masks.index, num_visual)
        total += step_flops(shape, step, masks)
        num_visual = step.num_visual_after
    return total


def step_flops(shape: ModelShape, step: Step, masks: StepMasks) -> Breakdown:
    """Of the decoder and its head in one step."""
    head = 2 * masks.candidates * shape.hidden_size * shape.vocab_rows
    total = Breakdown(head=head)
    for segment in step.segments(shape.num_layers):
        rows, num_layers = segment.num_rows, len(segment.layers)
        total += Breakdown(
            projections=num_layers * 2 * rows * shape.layer_weights,
            attention=num_layers * 2 * _products(shape, rows, segment.num_slots),
        )
        if segment.stage is None:
            continue
        pruning = step.plan.params.pruning
        assert pruning is not None
        for layer in segment.layers:
            total += _score_flops(
                shape,
                pruning,
                segment.stage,
                layer,
                segment.num_slots,
                segment.num_visual,
                masks,
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


def _products(shape: ModelShape, rows: int, columns: int) -> int:
    """Queries of ``rows`` tokens with the keys of ``columns`` tokens, all heads."""
    return 2 * rows * columns * shape.num_heads * shape.head_dim


def _score_flops(
    shape: ModelShape,
    pruning: PruningParams,
    stage: PruneStage,
    layer: int,
    length: int,
    num_visual: int,
    masks: StepMasks,
) -> Breakdown:
    """Of what a policy computes after a layer."""
    policy = policy_of(pruning.policy)
    if not policy.observes(layer, stage.layer):
        return Breakdown()
    seen = ViewShape(
        rows={"all": length, "answer": masks.canvas, "last": 1}[pruning.queries],
        length=length,
        num_visual=num_visual,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
    )
    return Breakdown(scores=policy.flops(seen))
