# SPDX-License-Identifier: Apache-2.0
"""How many requests a machine runs at once, how fast, and what bounds that.

``docs/capacity.md`` has the formulas.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import cached_property

from vllm_lladav.denoising.plan import StepPlan
from vllm_lladav.options.kinds import Integer
from vllm_lladav.tools.capacity.engine import Engine
from vllm_lladav.tools.capacity.machine import Machine
from vllm_lladav.tools.capacity.step import (
    Load,
    Part,
    RequestLoad,
    mean_parts,
    seconds_by_bound,
    seconds_of,
    step_parts,
)

# What can limit the number of requests at once, or their rate.
CONCURRENCY = "concurrency"
FULL_STEPS = "full_step_tokens"
KV_MEMORY = "KV memory"
MAX_SEQS = "max_num_seqs"

MORE_WOULD_HELP = 0.1
"""If twice the requests at once gain this share of throughput or more, their number is
called the bound; otherwise what a step waits for is."""

ENOUGH = 0.9
"""Share of the largest throughput that :attr:`Capacity.enough_requests` reach."""

RARE = 1e-9
"""Probability of a binomial outcome from which on it is left out."""


class DoesNotFit(ValueError):
    """The machine cannot run even one request."""


def num_admissible(capacity: float, first: float, later: float) -> int:
    """How many requests run at once when they are admitted one after the other.

    Args:
        capacity: KV blocks of the pool, or tokens of a step's budget.
        first: how much of it must be free to admit a request.
        later: how much of it a request holds once its first step is over.
    """
    if first > capacity:
        return 0
    return math.floor((capacity - first) / later + 1e-9) + 1


def binomial(count: int, share: float) -> list[tuple[float, float]]:
    """The binomial distribution, as pairs (successes, probability).

    Outcomes rarer than :data:`RARE` are left out.

    Args:
        count: number of trials.
        share: probability of a success in each, 0 to 1.
    """
    if share in (0, 1):
        return [(round(count * share), 1.0)]
    found = []
    for successes in range(count + 1):
        failures = count - successes
        ways = math.lgamma(count + 1)
        ways -= math.lgamma(successes + 1) + math.lgamma(failures + 1)
        log_weight = successes * math.log(share) + failures * math.log1p(-share)
        found.append((successes, math.exp(ways + log_weight)))
    return [(successes, weight) for successes, weight in found if weight > RARE]


@dataclass(frozen=True)
class Capacity:
    """A machine, a model on it, and the one kind of request that all clients send.

    Attributes:
        machine: what each rank runs on.
        engine: the model and the engine's options.
        plan: lengths, steps and pruning of a request.
        num_tiles: tiles of all images of a request.
        concurrency: requests that clients have under way at any time; None for as
            many as the server takes.
    """

    machine: Machine
    engine: Engine
    plan: StepPlan
    num_tiles: int = 0
    concurrency: int | None = None

    def __post_init__(self) -> None:
        if self.concurrency is not None:
            Integer().check("concurrency", self.concurrency)

    @cached_property
    def load(self) -> RequestLoad:
        """What each step of a request asks of the machine."""
        return RequestLoad.of(
            self.engine.shape, self.plan, self.num_tiles, self.engine.block_size
        )

    # ------------------------------------------------------------- memory, one rank
    @property
    def share_bytes(self) -> float:
        """Bytes of a rank's memory that vLLM uses."""
        return self.machine.memory * self.engine.memory_share

    @property
    def embeds_room_bytes(self) -> float:
        """Bytes that a GPU holds free for prompt embeddings of running requests: for as
        many tokens as have K/V in vLLM's share of the memory, or fewer if so many
        cannot run. (The longest request is taken to fill the token budget.)"""
        engine = self.engine
        if engine.on_cpu:
            return 0
        tokens = min(
            self.share_bytes / engine.kv_token_bytes,
            engine.max_seqs * engine.max_batched_tokens,
        )
        return tokens * engine.embeds_token_bytes

    @property
    def pool_bytes(self) -> float:
        """Bytes for KV blocks on a rank: what weights, activations of the largest step,
        a tile of logits and the room for prompt embeddings leave of vLLM's share of the
        memory."""
        engine = self.engine
        return (
            self.share_bytes
            - engine.weight_bytes
            - engine.activation_bytes
            - engine.logits_tile_bytes
            - self.embeds_room_bytes
        )

    @property
    def pool_blocks(self) -> int:
        """KV blocks that requests can have: those of the pool but one, which vLLM keeps
        for itself."""
        return max(int(self.pool_bytes // self.engine.block_bytes) - 1, 0)

    @property
    def embeds_bytes(self) -> float:
        """Bytes of a request's prompt embeddings after its first step."""
        pruned = self.plan.num_visual - self.plan.first.num_visual_after
        return (self.plan.prompt_len - pruned) * self.engine.embeds_token_bytes

    # ------------------------------------------------------------- requests at once
    @cached_property
    def limits(self) -> dict[str, int]:
        """Most requests at once, by the name of what admits no more."""
        first, later = self.load.steps[0], self.load.later
        limits = {
            KV_MEMORY: num_admissible(self.pool_blocks, first.blocks, later.blocks),
            MAX_SEQS: self.engine.max_seqs // self.plan.params.num_sequences,
        }
        if self.concurrency is not None:
            limits[CONCURRENCY] = self.concurrency
        return limits

    @cached_property
    def limit(self) -> str:
        """Name of the one in :attr:`limits` that admits the fewest requests."""
        return min(self.limits, key=lambda name: self.limits[name])

    @cached_property
    def requests(self) -> int:
        """Number of requests that run at once: the smallest of :attr:`limits`.

        Raises:
            DoesNotFit: if not even one can run.
        """
        first = self.load.steps[0].scheduled
        if first > self.engine.max_batched_tokens:
            raise DoesNotFit(
                f"the token budget ({self.engine.max_batched_tokens}) is smaller than "
                f"a request's first step ({first:.0f} tokens)"
            )
        count = self.limits[self.limit]
        if count < 1:
            raise DoesNotFit(self._why_none())
        return count

    def _why_none(self) -> str:
        engine, first = self.engine, self.load.steps[0]
        if self.limit == KV_MEMORY:
            return (
                f"no request fits into the memory: vLLM's share is "
                f"{self.share_bytes / 1e9:.1f} GB, weights take "
                f"{engine.weight_bytes / 1e9:.1f}, the largest step "
                f"{(engine.activation_bytes + engine.logits_tile_bytes) / 1e9:.1f}, "
                f"room for prompt embeddings {self.embeds_room_bytes / 1e9:.1f}, and "
                f"the KV blocks of one request "
                f"{first.blocks * engine.block_bytes / 1e9:.1f}"
            )
        return f"no request fits: {self.limit}"

    # ------------------------------------------------------------- time
    @property
    def active_limit(self) -> float:
        """Most requests that take part in a mean step. Those at full steps take turns
        (``full_step_tokens``), and the ones whose turn it is not wait."""
        share, full = self.load.kind(is_full=True)
        return self._full_at_once(full) / share

    def _full_at_once(self, load: Load) -> int:
        """Full steps that run in an iteration at most. One does whatever its size."""
        most = self.engine.full_step_tokens or self.engine.max_batched_tokens
        return max(int(min(most, self.engine.max_batched_tokens) // load.scheduled), 1)

    def active(self, num_requests: int) -> float:
        """How many of ``num_requests`` running requests take part in a mean step."""
        return min(num_requests, self.active_limit)

    def parts(self, num_requests: int) -> tuple[Part, ...]:
        """The parts of a mean step of ``num_requests`` running requests.

        Each request is at a random one of its steps, so the number of those at a full
        step follows a binomial distribution. Where full steps take turns, that number
        is always the same.
        """
        share, full = self.load.kind(is_full=True)
        _, cached = self.load.kind(is_full=False)
        active = self.active(num_requests)
        if active < num_requests:
            counts = [(active * share, 1.0)]
        else:
            counts = binomial(num_requests, share)
        batches = (
            (weight, full.times(count) + cached.times(active - count))
            for count, weight in counts
        )
        return mean_parts(
            (weight, step_parts(self.machine, self.engine, batch))
            for weight, batch in batches
        )

    def requests_per_second(self, num_requests: int) -> float:
        """Requests that end per second while ``num_requests`` run: a new one takes the
        place of each."""
        seconds = seconds_of(self.parts(num_requests))
        return self.active(num_requests) / (seconds * len(self.load.steps))

    @property
    def enough_requests(self) -> int:
        """Fewest requests at once with :data:`ENOUGH` of the throughput of
        :attr:`requests`. With more of them each waits longer, for little."""
        counts = range(1, self.requests + 1)
        wanted = ENOUGH * self.requests_per_second(self.requests)
        return counts[bisect_left(counts, wanted, key=self.requests_per_second)]

    def burst_seconds(self, num_requests: int) -> float:
        """Seconds until all of ``num_requests`` are done that start together on an idle
        machine, which must have room for all at once: cached steps of all run together,
        full ones in turn."""
        seconds = 0.0
        for load in self.load.steps:
            at_once = self._full_at_once(load) if load.full else num_requests
            num_whole, rest = divmod(num_requests, at_once)
            for count, times in ((at_once, num_whole), (rest, bool(rest))):
                batch = load.times(count)
                parts = step_parts(self.machine, self.engine, batch)
                seconds += times * seconds_of(parts)
        return seconds

    @property
    def gain_of_more(self) -> float:
        """Share by which throughput would grow with twice the requests at once."""
        more = self.requests_per_second(2 * self.requests)
        return more / self.requests_per_second(self.requests) - 1

    @property
    def gain_of_no_turns(self) -> float:
        """Share by which throughput would grow if full steps did not take turns."""
        if self.active_limit >= self.requests:
            return 0.0
        free = replace(self, engine=replace(self.engine, full_step_tokens=0))
        more = free.requests_per_second(self.requests)
        return more / self.requests_per_second(self.requests) - 1

    @property
    def bound(self) -> str:
        """Name of what would have to be larger for more requests per second: a limit of
        the requests at once, or what a mean step waits for most of its time."""
        if self.gain_of_no_turns > MORE_WOULD_HELP:
            return FULL_STEPS
        if self.limit != CONCURRENCY and self.gain_of_more > MORE_WOULD_HELP:
            return self.limit
        return next(iter(seconds_by_bound(self.parts(self.requests))))
