# SPDX-License-Identifier: Apache-2.0
"""What ``vllm-lladav capacity`` computes: by hand, and what must always hold."""

import math
from dataclasses import astuple, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_lladav.denoising.params import CACHES
from vllm_lladav.denoising.plan import StepPlan
from vllm_lladav.model.shape import ModelShape
from vllm_lladav.tools.capacity.checkpoint import PRESETS
from vllm_lladav.tools.capacity.engine import LOGITS_TILE_BYTES, Engine
from vllm_lladav.tools.capacity.load import Load, RequestLoad
from vllm_lladav.tools.capacity.machine import GPUS, Machine, describe, parse_machine
from vllm_lladav.tools.capacity.model import (
    CONCURRENCY,
    ENOUGH,
    KV_MEMORY,
    Capacity,
    DoesNotFit,
    binomial,
    num_admissible,
)
from vllm_lladav.tools.capacity.request import Images, make_plan
from vllm_lladav.tools.capacity.step import mean_parts, seconds_of, step_parts
from vllm_lladav.tools.flops import request_flops

EIGHT = PRESETS["8b"]
SMALL = ModelShape(
    hidden_size=8,
    intermediate_size=16,
    num_layers=4,
    num_heads=2,
    num_kv_heads=2,
    head_dim=4,
    vocab_rows=100,
)
ROUND = Machine(
    memory=1e9,
    peak=1e9,
    bandwidth=1e6,
    share=0.5,
    bandwidth_share=0.5,
    overhead=0,
    request_overhead=0,
)

SLACK = 1e-6
"""Means leave out what is rarer than `RARE` of the capacity model, 1e-9 each."""

counts = st.integers(1, 64)


@st.composite
def plans(draw: st.DrawFn) -> StepPlan:
    block_length = draw(st.integers(1, 8))
    num_blocks = draw(st.integers(1, 4))
    images = draw(st.lists(st.integers(1, 40), max_size=3))
    return make_plan(
        Images(tuple(images)),
        text_tokens=draw(st.integers(1, 30)),
        gen_length=block_length * num_blocks,
        block_length=block_length,
        steps=num_blocks * draw(st.integers(1, 10)),
        cache=draw(st.sampled_from(CACHES)),
        refresh_interval=draw(st.integers(1, 5)),
        prune_rate=draw(st.sampled_from([0, 0.3, 0.75])),
        prune_layer=draw(st.integers(1, SMALL.num_layers)),
        cfg_scale=draw(st.sampled_from([0, 0.5])),
    )


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    positive = st.floats(1e6, 1e15)
    share = st.floats(0.01, 1)
    seconds = st.floats(0, 1)
    return Machine(
        memory=draw(positive),
        peak=draw(positive),
        bandwidth=draw(positive),
        share=draw(share),
        bandwidth_share=draw(share),
        overhead=draw(seconds),
        request_overhead=draw(seconds),
        link=draw(positive),
    )


def make_engine(**changes: int) -> Engine:
    engine = Engine(SMALL, max_batched_tokens=10_000, block_size=4, full_step_tokens=0)
    return replace(engine, **changes)


# --- by hand ---------------------------------------------------------------------


def test_bytes_of_the_8b():
    """Computed on paper from the published dimensions."""
    engine = Engine(EIGHT.shape, max_batched_tokens=16384)
    # q, k, v, o: 4 * 4096^2; gate, up, down: 3 * 4096 * 12288; 32 layers, bfloat16.
    assert engine.decoder_bytes == 13_958_643_712
    assert engine.head_bytes == 1_035_468_800
    # 26 layers of 15,224,832; patches 677,376, places 839,808; projector 21,495,808.
    assert engine.tower_bytes == 837_717_248
    assert engine.weight_bytes == 13_958_643_712 + 2 * 1_035_468_800 + 837_717_248
    assert engine.kv_token_bytes == 524_288  # 2 * 32 * 4096 * 2
    assert engine.block_bytes == 8_388_608
    assert engine.logits_tile_rows == 66
    # Three times 4096, and three times 12288.
    assert engine.activation_bytes == 16384 * 49152 * 2


def test_two_ranks_share():
    one = Engine(EIGHT.shape, max_batched_tokens=16384)
    two = replace(one, tensor_parallel=2)
    assert two.decoder_bytes == one.decoder_bytes / 2
    assert two.block_bytes == one.block_bytes / 2
    # The projector is on both.
    assert two.tower_bytes == (837_717_248 - 42_991_616) / 2 + 42_991_616


def test_an_image_of_the_8b():
    """The README's numbers, and 6 tiles and the whole for a full canvas."""
    assert EIGHT.visual([(384, 384)]) == ((1485,), 2)
    assert EIGHT.visual([(384, 384)] * 3) == ((729,) * 3, 3)
    assert EIGHT.visual([(384, 384)], "pad_list") == ((730,), 1)
    assert EIGHT.visual([(768, 1152)])[1] == 7
    assert EIGHT.visual([]) == ((), 0)


def test_a_step_by_hand():
    """One request of 6 tokens: 4 of the prompt, 2 of the canvas, 2 steps."""
    plan = make_plan(Images(), text_tokens=4, gen_length=2)
    load = RequestLoad.of(SMALL, plan, num_tiles=0, block_size=4)
    # A layer has 4 * 64 + 3 * 128 = 640 weights.
    first = Load(
        projections=2 * 6 * 640 * 4,
        attention=4 * 6 * 6 * 8 * 4,
        head=2 * 2 * 8 * 100,
        rows=6,
        scheduled=6,
        attended=6,
        candidates=2,
        requests=1,
    )
    second = replace(first, head=2 * 1 * 8 * 100, candidates=1)
    assert load.steps == (first, second)
    assert load.held == (6, 6)

    parts = {p.name: p for p in step_parts(ROUND, make_engine(), first)}
    # 5e8 operations and 5e5 bytes a second; 2 bytes a number.
    assert parts["projections"].bytes == 640 * 4 * 2
    assert parts["projections"].seconds == pytest.approx(5120 / 5e5)
    assert parts["projections"].bound == "bandwidth (weights)"
    # 6 tokens read and 6 written, 2 * 4 layers * 8 numbers each.
    assert parts["attention"].bytes == 12 * 64 * 2
    assert parts["attention"].bound == "bandwidth (K/V)"
    # The head once, and 2 rows of 100 logits, 12 bytes each.
    assert parts["head"].bytes == 8 * 100 * 2 + 2 * 100 * 12
    assert set(parts) == {"projections", "attention", "head"}


def test_a_pruning_step_by_hand():
    """Of 10 visual tokens 7 go after layer 1 of 4; 5 more tokens stay."""
    plan = make_plan(
        Images((10,), 1),
        text_tokens=3,
        gen_length=2,
        prune_rate=0.75,
        prune_layer=1,
        cache="prompt",
    )
    first, second = RequestLoad.of(SMALL, plan, num_tiles=0, block_size=4).steps
    assert first.scheduled == 15
    assert first.rows == first.attended == (15 + 3 * 8) / 4
    assert (second.scheduled, second.rows, second.attended) == (2, 2, 8)


def test_arithmetic_bound():
    fast_memory = replace(ROUND, bandwidth=1e15)
    load = Load(projections=1e9, requests=1)
    (part,) = (p for p in step_parts(fast_memory, make_engine(), load) if p.flops)
    assert part.seconds == pytest.approx(2)  # Half of the peak is reached.
    assert part.bound == "arithmetic"


def test_all_reduce_by_hand():
    machine = replace(ROUND, link=1e6)
    load = Load(rows=10, requests=1)
    parts = step_parts(machine, make_engine(tensor_parallel=2), load)
    (part,) = (part for part in parts if part.name == "communication")
    # 10 rows of 8 numbers of 2 bytes; 2 all-reduces in 4 layers send them once each.
    assert part.bytes == 8 * 160
    assert part.seconds == pytest.approx(8 * 160 / 5e5)


@pytest.mark.parametrize(
    "pool, first, later, expected",
    # docs/pruning-cost.md: what the engine admitted.
    [(56, 14, 5, 9), (140, 14, 5, 26), (168, 14, 5, 31), (13, 14, 5, 0)],
)
def test_admission_as_measured(pool: int, first: int, later: int, expected: int):
    assert num_admissible(pool, first, later) == expected


def test_kv_memory_by_hand():
    """A pool of 25 blocks of 4 tokens, one of which is vLLM's."""
    engine = make_engine(max_batched_tokens=100)
    assert engine.block_bytes == 4 * 64 * 2
    fixed = engine.weight_bytes + engine.activation_bytes + LOGITS_TILE_BYTES
    memory = (fixed + 25 * engine.block_bytes + 1) / engine.memory_share
    plan = make_plan(
        Images((40,), 1),
        text_tokens=6,
        gen_length=2,
        prune_rate=0.75,
        prune_layer=1,
    )
    capacity = Capacity(replace(ROUND, memory=memory), engine, plan)
    # 48 tokens, then 18.
    assert (capacity.first_blocks, capacity.later_blocks) == (12, 5)
    assert capacity.pool_blocks == 24
    assert capacity.limits[KV_MEMORY] == 3  # 12 / 5 = 2.4, and one more.
    # 48 tokens in the step, then 18 each: 52 / 18 = 2.9, and one more.
    assert capacity.limits["token budget"] == 3
    with pytest.raises(DoesNotFit, match="no request fits into the memory"):
        _ = replace(capacity, machine=replace(ROUND, memory=fixed)).requests


def test_little_by_hand():
    """10 requests of 4 steps that take a second."""
    machine = replace(ROUND, bandwidth=1e15, peak=1e15, overhead=1.0)
    plan = make_plan(Images(), text_tokens=4, gen_length=4)
    capacity = Capacity(machine, make_engine(), plan, concurrency=10)
    assert capacity.requests == 10
    assert capacity.limit == CONCURRENCY
    assert capacity.requests_per_second(10) == pytest.approx(2.5, rel=1e-6)
    assert capacity.burst_seconds(10) == pytest.approx(4, rel=1e-6)
    assert capacity.gain_of_more == pytest.approx(1)
    assert capacity.bound == "overhead"


def test_full_steps_take_turns():
    """4 full steps of 46 tokens among 16: with room for two of them in an iteration, 8
    requests keep it full, and more of them wait."""
    plan = make_plan(
        Images((20,), 1), text_tokens=10, gen_length=16, block_length=4, cache="dual"
    )
    machine = replace(ROUND, overhead=1.0, bandwidth=1e15, peak=1e15)
    engine = make_engine(full_step_tokens=100)
    capacity = Capacity(machine, engine, plan, concurrency=20)
    assert sum(capacity.load.is_full) == 4
    assert capacity.active_limit == 8
    assert capacity.requests_per_second(4) == pytest.approx(4 / 16, rel=1e-6)
    assert capacity.requests_per_second(20) == pytest.approx(8 / 16, rel=1e-6)
    assert capacity.bound == "full_step_tokens"
    # One is let through whatever its size.
    tight = replace(capacity, engine=make_engine(full_step_tokens=5))
    assert tight.active_limit == 4
    exact = replace(plan, params=replace(plan.params, cache="none"))
    assert replace(capacity, plan=exact).active_limit == math.inf


# --- what must hold --------------------------------------------------------------


@settings(deadline=None)
@given(plans(), st.integers(1, 16))
def test_steps_add_up_to_the_request(plan: StepPlan, block_size: int):
    load = RequestLoad.of(SMALL, plan, num_tiles=0, block_size=block_size)
    total = sum(load.steps, Load())
    whole = request_flops(SMALL, plan)
    found = (total.projections, total.attention, total.head, total.scores)
    expected = (whole.projections, whole.attention, whole.head, whole.scores)
    assert found == pytest.approx(expected)
    assert total.requests == len(load.steps) == len(load.held)
    assert list(load.held) == sorted(load.held, reverse=True)
    for step, held in zip(load.steps, load.held, strict=True):
        assert 0 < step.rows <= step.scheduled <= held
        assert step.rows <= step.attended


@settings(deadline=None)
@given(plans())
def test_rows_explain_the_projections(plan: StepPlan):
    """Operations per row are what a row takes, pruned or not."""
    for step in RequestLoad.of(SMALL, plan, 0, 4).steps:
        per_row = step.projections / step.rows
        assert per_row == pytest.approx(2 * SMALL.layer_weights * SMALL.num_layers)


@settings(deadline=None)
@given(st.integers(0, 2000), st.integers(1, 60), st.data())
def test_admission_is_what_a_pool_does(pool: int, first: int, data: st.DataObject):
    """Admit one after the other; each gives back blocks after its first step."""
    later = data.draw(st.integers(1, first))
    free, running = pool, 0
    while free >= first:
        free -= later
        running += 1
    assert num_admissible(pool, first, later) == running


@settings(deadline=None)
@given(plans(), machines(), counts, st.sampled_from([0, 1, 100, 1000]))
def test_more_requests(
    plan: StepPlan, machine: Machine, count: int, full_step_tokens: int
):
    """Twice as many are served as fast at least, and each waits as long at least."""
    engine = make_engine(full_step_tokens=full_step_tokens)
    capacity = Capacity(machine, engine, plan)
    rate, more = map(capacity.requests_per_second, (count, 2 * count))
    assert rate * (1 - SLACK) <= more <= 2 * rate * (1 + SLACK)


@settings(deadline=None)
@given(plans(), machines(), counts)
def test_a_burst_waits_no_less_than_a_mix(plan: StepPlan, machine: Machine, count: int):
    """Steps of a kind at once leave arithmetic or memory idle; a mix does less. (Tiles
    of logits are rounded up, in either.)"""
    engine = make_engine()
    capacity = Capacity(machine, engine, plan)
    num_steps = len(capacity.load.steps)
    mixed = count / capacity.requests_per_second(count)
    tile = engine.head_bytes / machine.reached_bandwidth
    assert capacity.burst_seconds(count) >= mixed * (1 - SLACK) - num_steps * tile


@settings(deadline=None)
@given(plans(), machines())
def test_one_request_has_nobody_to_mix_with(plan: StepPlan, machine: Machine):
    """But for head and vision, which differ among steps of a kind."""
    capacity = Capacity(machine, make_engine(), plan)
    alone = mean_parts(
        (1, step_parts(machine, make_engine(), s)) for s in capacity.load.steps
    )
    decoder = sum(p.seconds for p in alone if p.name in ("projections", "overhead"))
    mean = capacity.parts(1)
    mean = sum(p.seconds for p in mean if p.name in ("projections", "overhead"))
    assert mean * len(capacity.load.steps) == pytest.approx(decoder)


@settings(deadline=None)
@given(st.integers(0, 300), st.floats(0, 1))
def test_binomial(count: int, share: float):
    found = binomial(count, share)
    assert sum(weight for _, weight in found) == pytest.approx(1, abs=1e-4)
    mean = sum(weight * successes for successes, weight in found)
    assert mean == pytest.approx(count * share, abs=1e-2)


@settings(deadline=None)
@given(plans(), st.integers(1, 100))
def test_as_many_as_are_enough(plan: StepPlan, concurrency: int):
    engine = make_engine(max_seqs=10_000, max_batched_tokens=10**6)
    capacity = Capacity(GPUS["h100"], engine, plan, concurrency=concurrency)
    enough = capacity.enough_requests
    wanted = ENOUGH * capacity.requests_per_second(capacity.requests)
    assert 1 <= enough <= capacity.requests == concurrency
    assert capacity.requests_per_second(enough) >= wanted


@settings(deadline=None)
@given(plans(), machines(), counts, st.sampled_from(["peak", "bandwidth"]))
def test_a_faster_machine(plan: StepPlan, machine: Machine, count: int, name: str):
    faster = replace(machine, **{name: 2 * getattr(machine, name)})
    slow, fast = (Capacity(m, make_engine(), plan) for m in (machine, faster))
    assert fast.burst_seconds(count) <= slow.burst_seconds(count)
    assert fast.requests_per_second(count) >= slow.requests_per_second(count)


@settings(deadline=None)
@given(plans(), machines(), st.floats(1e5, 1e9))
def test_requests_fit(plan: StepPlan, machine: Machine, pool: float):
    """The pool holds the blocks of all but one behind their first step, and of one in
    it; with one request more it would not."""
    engine = make_engine()
    needed = pool + engine.weight_bytes + engine.activation_bytes + LOGITS_TILE_BYTES
    capacity = Capacity(replace(machine, memory=needed / 0.92), engine, plan)
    count = capacity.limits[KV_MEMORY]
    first, later = capacity.first_blocks, capacity.later_blocks
    assert later <= first
    if count:
        assert first + (count - 1) * later <= capacity.pool_blocks + 1e-6
    assert first + count * later > capacity.pool_blocks - 1e-6


@settings(deadline=None)
@given(plans(), counts)
def test_parts_add_up(plan: StepPlan, count: int):
    parts = Capacity(GPUS["h100"], make_engine(), plan).parts(count)
    assert seconds_of(parts) == pytest.approx(sum(part.seconds for part in parts))
    assert all(part.seconds > 0 for part in parts)


@settings(deadline=None)
@given(machines())
def test_a_machine_is_read_back(machine: Machine):
    found = parse_machine(describe(machine))
    assert astuple(found) == pytest.approx(astuple(machine), rel=1e-5)
