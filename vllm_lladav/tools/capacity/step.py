# SPDX-License-Identifier: Apache-2.0
"""What the steps of a request ask of a machine, and how long they take: the slower of
arithmetic and memory, part by part."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from typing import Self

from vllm_lladav.denoising.plan import Step, StepPlan
from vllm_lladav.model.flops import StepMasks, step_flops, steps_of, vision_flops
from vllm_lladav.model.shape import ModelShape
from vllm_lladav.tools.capacity.engine import Engine
from vllm_lladav.tools.capacity.machine import Machine

# What a part can wait for.
ARITHMETIC = "arithmetic"
WEIGHTS = "bandwidth (weights)"
KV = "bandwidth (K/V)"
LOGITS = "bandwidth (logits)"
VISION = "vision tower"
LINK = "link between ranks"
OVERHEAD = "overhead"

PARTS = (
    *("projections", "attention", "head", "scores", "vision"),
    *("communication", "overhead"),
)
"""Names of a step's parts, in the order in which they are listed."""


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
        full: of these, those at a step that computes all tokens.
        blocks: KV blocks that they hold as the step starts.
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
    full: float = 0
    blocks: float = 0
    encoding: float = 0

    def __add__(self, other: "Load") -> "Load":
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Load(*(mine + theirs for mine, theirs in pairs))

    def times(self, count: float) -> "Load":
        """The load of a batch that is ``count`` times as large."""
        return Load(*(count * value for value in astuple(self)))

    @classmethod
    def mean(cls, loads: "Sequence[Load]") -> "Load":
        """The mean of at least one load."""
        figures = zip(*map(astuple, loads), strict=True)
        return cls(*(sum(values) / len(loads) for values in figures))


@dataclass(frozen=True)
class RequestLoad:
    """All steps of a request.

    Attributes:
        steps: in order, with the vision tower in the first one.
    """

    steps: tuple[Load, ...]

    @classmethod
    def of(
        cls, shape: ModelShape, plan: StepPlan, num_tiles: int, block_size: int
    ) -> Self:
        """The steps of a request that no stop ends.

        Args:
            num_tiles: image tiles of all images together.
            block_size: KV slots of a KV block.
        """
        loads = [_load(shape, *step, block_size) for step in steps_of(plan)]
        vision = vision_flops(shape, num_tiles).total
        loads[0] += Load(vision=vision, encoding=bool(num_tiles))
        return cls(tuple(loads))

    @property
    def later(self) -> Load:
        """The mean of the steps after the first one, or that one if it is the last."""
        return Load.mean(self.steps[1:] or self.steps)

    def kind(self, is_full: bool) -> tuple[float, Load]:
        """The share of the steps that are full, or are not, and their mean."""
        chosen = [load for load in self.steps if load.full == is_full]
        if not chosen:
            return 0.0, Load()
        return len(chosen) / len(self.steps), Load.mean(chosen)


def _load(shape: ModelShape, step: Step, masks: StepMasks, block_size: int) -> Load:
    """The decoder's and the head's in one step."""
    rows = attended = 0
    for segment in step.segments(shape.num_layers):
        rows += segment.num_rows * len(segment.layers)
        attended += segment.num_slots * len(segment.layers)
    return Load(
        **asdict(step_flops(shape, step, masks)),
        rows=rows / shape.num_layers,
        scheduled=step.num_rows,
        attended=step.plan.params.num_sequences * attended / shape.num_layers,
        candidates=masks.candidates,
        requests=1,
        full=step.is_full,
        blocks=-(-step.num_held_slots(block_size) // block_size),
    )


@dataclass(frozen=True)
class Part:
    """One part of a step.

    Attributes:
        name: one of :data:`PARTS`.
        seconds: time that it takes of the step.
        bound: what it waits for: arithmetic, memory bandwidth, link or overhead.
        flops: floating-point operations of all ranks together.
        bytes: that one rank reads and writes in memory, or sends over the link.
    """

    name: str
    seconds: float
    bound: str
    flops: float = 0
    bytes: float = 0


def step_parts(machine: Machine, engine: Engine, load: Load) -> tuple[Part, ...]:
    """The parts of one step that has to do what ``load`` asks for; parts that take no
    time are left out.

    Parts run one after the other, so each is the slower of its own arithmetic and its
    own memory traffic, and they add up.
    """
    kv_bytes = (load.attended + load.rows) * engine.kv_token_bytes
    tiles = -(-load.candidates // engine.logits_tile_rows)
    head_bytes = tiles * engine.head_bytes
    logits = load.candidates * engine.shape.vocab_rows / engine.tensor_parallel
    logits_bytes = logits * engine.logit_bytes
    head_bound = WEIGHTS if head_bytes > logits_bytes else LOGITS
    # Those of one step go through together.
    vision_bytes = min(load.encoding, 1) * engine.tower_bytes

    def part(name: str, flops: float, moved: float, memory_bound: str) -> Part:
        arithmetic = flops / engine.tensor_parallel / (machine.peak * machine.share)
        memory = moved / (machine.bandwidth * machine.bandwidth_share)
        bound = ARITHMETIC if arithmetic >= memory else memory_bound
        return Part(name, max(arithmetic, memory), bound, flops, moved)

    overhead = machine.overhead + load.requests * machine.request_overhead
    parts = [
        part("projections", load.projections, engine.decoder_bytes, WEIGHTS),
        part("attention", load.attention, kv_bytes, KV),
        part("head", load.head, head_bytes + logits_bytes, head_bound),
        part("scores", load.scores, 0, ARITHMETIC),
        replace(part("vision", load.vision, vision_bytes, VISION), bound=VISION),
        _communication(machine, engine, load),
        Part("overhead", overhead, OVERHEAD),
    ]
    return tuple(part for part in parts if part.seconds)


def _communication(machine: Machine, engine: Engine, load: Load) -> Part:
    """The exchange between ranks: two all-reduces of the hidden states in every layer,
    each of which sends and receives nearly twice their size."""
    ranks = engine.tensor_parallel
    if ranks == 1:
        return Part("communication", 0, LINK)
    if machine.link is None:
        raise ValueError("machine: link must be given for several ranks")
    states = load.rows * engine.shape.hidden_size * engine.dtype_bytes
    sent = 2 * engine.shape.num_layers * 2 * (ranks - 1) / ranks * states
    seconds = sent / (machine.link * machine.bandwidth_share)
    return Part("communication", seconds, LINK, bytes=sent)


def mean_parts(cases: Iterable[tuple[float, Iterable[Part]]]) -> tuple[Part, ...]:
    """The parts of a mean step, in the order of :data:`PARTS`.

    Args:
        cases: pairs of a share of all steps, 0 to 1, and the parts of such a step.

    Returns:
        One part for every name and bound: a part that waits for memory in some steps
        and for arithmetic in others is there twice.
    """
    sums: dict[tuple[str, str], Part] = {}
    for share, parts in cases:
        for part in parts:
            key = part.name, part.bound
            known = sums.get(key, Part(part.name, 0, part.bound))
            sums[key] = replace(
                known,
                seconds=known.seconds + share * part.seconds,
                flops=known.flops + share * part.flops,
                bytes=known.bytes + share * part.bytes,
            )
    return tuple(sorted(sums.values(), key=lambda part: PARTS.index(part.name)))


def seconds_of(parts: Iterable[Part]) -> float:
    """Seconds of the whole step."""
    return sum(part.seconds for part in parts)


def seconds_by_bound(parts: Iterable[Part]) -> dict[str, float]:
    """Seconds of a step by what they are waited for, the largest first."""
    seconds: dict[str, float] = {}
    for part in parts:
        seconds[part.bound] = seconds.get(part.bound, 0) + part.seconds
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))
