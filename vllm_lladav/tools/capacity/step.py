# SPDX-License-Identifier: Apache-2.0
"""How long a step takes: the slower of arithmetic and memory, part by part."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from vllm_lladav.tools.capacity.engine import Engine
from vllm_lladav.tools.capacity.load import Load
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

LOGITS_BYTES = 3 * 4
"""Bytes moved for each logit: a float32, written once and read twice."""


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
    logits_bytes = (
        load.candidates
        * engine.shape.vocab_rows
        * LOGITS_BYTES
        / engine.tensor_parallel
    )
    head_bound = WEIGHTS if head_bytes > logits_bytes else LOGITS
    # Those of one step go through together.
    vision_bytes = min(load.encoding, 1) * engine.tower_bytes

    def part(name: str, flops: float, moved: float, memory_bound: str) -> Part:
        arithmetic = flops / engine.tensor_parallel / machine.reached_flops
        memory = moved / machine.reached_bandwidth
        bound = ARITHMETIC if arithmetic >= memory else memory_bound
        return Part(name, max(arithmetic, memory), bound, flops, moved)

    vision = part("vision", load.vision, vision_bytes, WEIGHTS)
    parts = [
        part("projections", load.projections, engine.decoder_bytes, WEIGHTS),
        part("attention", load.attention, kv_bytes, KV),
        part("head", load.head, head_bytes + logits_bytes, head_bound),
        part("scores", load.scores, 0, ARITHMETIC),
        Part("vision", vision.seconds, VISION, vision.flops, vision.bytes),
        _communication(machine, engine, load),
        Part(
            "overhead",
            machine.overhead + load.requests * machine.request_overhead,
            OVERHEAD,
        ),
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


def mean_parts(
    cases: Iterable[tuple[float, Iterable[Part]]],
) -> tuple[Part, ...]:
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
