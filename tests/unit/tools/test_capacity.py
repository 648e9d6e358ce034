# SPDX-License-Identifier: Apache-2.0
"""What ``vllm-lladav capacity`` computes, against figures computed by hand."""

from dataclasses import replace
from typing import Any

import pytest

from tests.unit.tools.capacity_cases import SMALL, make_engine, make_plan
from vllm_lladav.tools.capacity.engine import Engine
from vllm_lladav.tools.capacity.machine import GPUS, Machine
from vllm_lladav.tools.capacity.model import (
    CONCURRENCY,
    KV_MEMORY,
    Capacity,
    DoesNotFit,
    num_admissible,
)
from vllm_lladav.tools.capacity.request import Images
from vllm_lladav.tools.capacity.step import Load, RequestLoad, step_parts
from vllm_lladav.tools.checkpoint import PRESETS

EIGHT = PRESETS["8b"]
ROUND = Machine(
    memory=1e9,
    peak=1e9,
    bandwidth=1e6,
    share=0.5,
    bandwidth_share=0.5,
    overhead=0,
    request_overhead=0,
)


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
    assert engine.logits_tile_rows == 530
    assert replace(engine, on_cpu=True).logits_tile_rows == 66
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
        full=1,
        blocks=2,
    )
    second = replace(first, head=2 * 1 * 8 * 100, candidates=1)
    assert load.steps == (first, second)

    parts = {p.name: p for p in step_parts(ROUND, make_engine(), first)}
    # 5e8 operations and 5e5 bytes a second; 2 bytes a number.
    assert parts["projections"].bytes == 640 * 4 * 2
    assert parts["projections"].seconds == pytest.approx(5120 / 5e5)
    assert parts["projections"].bound == "bandwidth (weights)"
    # 6 tokens read and 6 written, 2 * 4 layers * 8 numbers each.
    assert parts["attention"].bytes == 12 * 64 * 2
    assert parts["attention"].bound == "bandwidth (K/V)"
    # The head once, and 2 rows of 100 logits, 2 bytes each written and read.
    assert parts["head"].bytes == 8 * 100 * 2 + 2 * 100 * 4
    assert set(parts) == {"projections", "attention", "head"}
    # A float32 each, written and read twice.
    on_cpu = step_parts(ROUND, make_engine(on_cpu=True), first)
    (head,) = (part for part in on_cpu if part.name == "head")
    assert head.bytes == 8 * 100 * 2 + 2 * 100 * 12


@pytest.mark.parametrize(
    "changes, num_tokens",
    # 512 KiB of K and V a token: 140,380 fit into 73.6 GB, twice as many into 147.2.
    [
        ({}, 140_380),
        ({"tensor_parallel": 2}, 280_761),
        ({"max_seqs": 8}, 8 * 16384),
        ({"on_cpu": True}, 0),
    ],
)
def test_room_for_prompt_embeddings(changes: dict[str, Any], num_tokens: int):
    """It is taken from KV blocks."""
    engine = Engine(EIGHT.shape, max_batched_tokens=16384, **changes)
    plan = make_plan(Images(), text_tokens=4, gen_length=2)
    capacity = Capacity(GPUS["h100"], engine, plan)
    assert capacity.embeds_room_bytes // (4096 * 2) == num_tokens
    others = engine.weight_bytes + engine.activation_bytes + engine.logits_tile_bytes
    filled = others + capacity.embeds_room_bytes + capacity.pool_bytes
    assert filled == pytest.approx(0.92 * 80e9)


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
    fixed = engine.weight_bytes + engine.activation_bytes + engine.logits_tile_bytes
    fixed += 256 * 100 * 16  # Embeddings of 256 prompts.
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
    load = capacity.load
    assert (load.steps[0].blocks, load.later.blocks) == (12, 5)
    assert capacity.pool_blocks == 24
    assert capacity.limits[KV_MEMORY] == 3  # 12 / 5 = 2.4, and one more.
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
    assert sum(step.full for step in capacity.load.steps) == 4
    assert capacity.active_limit == 8
    assert capacity.requests_per_second(4) == pytest.approx(4 / 16, rel=1e-6)
    assert capacity.requests_per_second(20) == pytest.approx(8 / 16, rel=1e-6)
    assert capacity.bound == "full_step_tokens"
    # One is let through whatever its size.
    tight = replace(capacity, engine=make_engine(full_step_tokens=5))
    assert tight.active_limit == 4


def test_exact_requests_take_turns():
    """20 of 16 steps of 46 tokens and a second each: two in an iteration of 100."""
    plan = make_plan(Images((20,), 1), text_tokens=10, gen_length=16)
    machine = replace(ROUND, overhead=1.0, bandwidth=1e15, peak=1e15)
    engine = make_engine(full_step_tokens=100)
    capacity = Capacity(machine, engine, plan, concurrency=20)
    assert capacity.active_limit == 2
    assert capacity.requests_per_second(20) == pytest.approx(2 / 16, rel=1e-6)
    assert capacity.burst_seconds(20) == pytest.approx(10 * 16, rel=1e-6)
    assert capacity.burst_seconds(3) == pytest.approx(2 * 16, rel=1e-6)
    # Without that limit the token budget is one.
    unlimited = make_engine(full_step_tokens=0, max_batched_tokens=200)
    assert replace(capacity, engine=unlimited).active_limit == 4
