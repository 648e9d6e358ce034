# SPDX-License-Identifier: Apache-2.0
"""What must hold of ``vllm-lladav capacity`` for every request and machine."""

from dataclasses import astuple, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.tools.capacity_cases import SMALL, make_engine, make_plan
from vllm_lladav.denoising.plan import StepPlan
from vllm_lladav.model.flops import request_flops
from vllm_lladav.options.options import CACHES
from vllm_lladav.tools.capacity.machine import GPUS, Machine, describe, parse_machine
from vllm_lladav.tools.capacity.model import (
    ENOUGH,
    KV_MEMORY,
    Capacity,
    binomial,
    num_admissible,
)
from vllm_lladav.tools.capacity.request import Images
from vllm_lladav.tools.capacity.step import (
    Load,
    RequestLoad,
    mean_parts,
    seconds_of,
    step_parts,
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


@settings(deadline=None)
@given(plans(), st.integers(1, 16))
def test_steps_add_up_to_the_request(plan: StepPlan, block_size: int):
    load = RequestLoad.of(SMALL, plan, num_tiles=0, block_size=block_size)
    total = sum(load.steps, Load())
    whole = request_flops(SMALL, plan)
    found = (total.projections, total.attention, total.head, total.scores)
    expected = (whole.projections, whole.attention, whole.head, whole.scores)
    assert found == pytest.approx(expected)
    assert total.requests == len(load.steps)
    blocks = [step.blocks for step in load.steps]
    assert blocks == sorted(blocks, reverse=True)
    for step in load.steps:
        assert 0 < step.rows <= step.scheduled <= step.blocks * block_size
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
    tile = engine.head_bytes / (machine.bandwidth * machine.bandwidth_share)
    assert capacity.burst_seconds(count) >= mixed * (1 - SLACK) - num_steps * tile


@settings(deadline=None)
@given(plans(), machines())
def test_one_request_has_nobody_to_mix_with(plan: StepPlan, machine: Machine):
    """But for head and vision, which differ among steps of a kind. Where the rows do,
    too, some may wait for memory and some for arithmetic, of which a mean step knows
    less."""
    capacity = Capacity(machine, make_engine(), plan)
    alone = mean_parts(
        (1, step_parts(machine, make_engine(), s)) for s in capacity.load.steps
    )
    decoder = sum(p.seconds for p in alone if p.name in ("projections", "overhead"))
    mean = capacity.parts(1)
    mean = sum(p.seconds for p in mean if p.name in ("projections", "overhead"))
    steps = capacity.load.steps
    assert mean * len(steps) <= decoder * (1 + SLACK)
    kinds = {load.full for load in steps}
    if len({(load.full, load.rows) for load in steps}) == len(kinds):
        assert mean * len(steps) == pytest.approx(decoder)


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
    engine = make_engine(max_seqs=1)
    needed = pool + engine.weight_bytes + engine.activation_bytes
    needed += engine.logits_tile_bytes
    needed += engine.max_batched_tokens * engine.embeds_token_bytes
    capacity = Capacity(replace(machine, memory=needed / 0.92), engine, plan)
    count = capacity.limits[KV_MEMORY]
    first, later = capacity.load.steps[0].blocks, capacity.load.later.blocks
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
