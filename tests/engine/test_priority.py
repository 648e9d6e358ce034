# SPDX-License-Identifier: Apache-2.0
"""A more important request takes the place of a running one, which starts again."""

import pytest

from tests.engine.harness import (
    KV_BLOCK_BYTES,
    Engine,
    prompt_of,
    recorded_pruning,
    recorded_transfers,
)
from tests.engine.test_live_canvas import frames_of, watched


@pytest.fixture(scope="session")
def one_at_a_time(start_engine, tiny_checkpoint) -> Engine:
    return start_engine(tiny_checkpoint, scheduling_policy="priority", max_num_seqs=1)


@pytest.fixture(scope="session")
def few_blocks(start_engine, tiny_checkpoint) -> Engine:
    return start_engine(
        tiny_checkpoint,
        scheduling_policy="priority",
        max_model_len=512,
        kv_cache_memory_bytes=5 * KV_BLOCK_BYTES,
    )


@pytest.mark.parametrize("num_steps", [1, 7, 20, 31])
def test_preempted_request_emits_nothing_twice(
    one_at_a_time: Engine, golden_cases, num_steps: int
):
    """Wherever it is interrupted: the deltas add up to the official answer."""
    engine = one_at_a_time
    engine.reset_observations()
    victim, urgent = golden_cases["text_32_8_32"], golden_cases["text_stop"]
    engine.add_case(victim, priority=1, logprobs=0)
    engine.step(num_steps)
    emitted = sum(map(len, engine.answers[victim.name].deltas))
    engine.add_case(urgent, priority=0)
    engine.step()
    assert engine.running == [urgent.name]
    assert sum(map(len, engine.answers[victim.name].deltas)) == emitted
    answers = engine.finish()
    assert tuple(answers[urgent.name].token_ids) == urgent.output_ids
    assert tuple(answers[victim.name].token_ids) == victim.output_ids
    logprobs = answers[victim.name].logprobs
    assert [list(likely) for likely in logprobs] == [[t] for t in victim.output_ids]
    assert engine.max_in_flight == 1
    assert engine.free_blocks == engine.all_blocks


def test_watcher_of_a_preempted_request_sees_it_again(
    one_at_a_time: Engine, golden_cases
):
    """From its first step, and what was on its way when it was interrupted never."""
    engine = one_at_a_time
    victim, urgent = golden_cases["text_32_8_32"], golden_cases["text_stop"]
    with watched(victim) as (params, channel):
        engine.add(prompt_of(victim), params, victim.name, 1)
        engine.step(20)
        engine.add_case(urgent, priority=0)
        engine.finish()
        frames = frames_of(channel)
    steps = [frame.step_index.step for frame in frames]
    begun = steps.index(0, 1)
    assert 15 < begun <= 20
    assert steps == [*range(begun), *range(32)]
    assert [f.unmasked for f in frames[:begun]] == [
        f.unmasked for f in frames[begun : 2 * begun]
    ]


def test_something_was_emitted_before_the_preemption(
    one_at_a_time: Engine, golden_cases
):
    """Otherwise the test above proves nothing: after 20 of 32 steps two blocks of
    8 are done, and the canvas is denoised a second time from its first step."""
    engine = one_at_a_time
    victim = golden_cases["text_32_8_32"]
    with recorded_transfers() as transfers:
        engine.add_case(victim, priority=1)
        engine.step(20)
        assert sum(map(len, engine.answers[victim.name].deltas)) >= 16
        assert len(transfers) == 20
        engine.add_case(golden_cases["text_1_1_1"], priority=0)
        answers = engine.finish()
    assert tuple(answers[victim.name].token_ids) == victim.output_ids
    assert len(transfers) == 20 + 1 + 32
    assert transfers[21:41] == transfers[:20]


def test_image_request_is_preempted(one_at_a_time: Engine, golden_cases):
    """Its picture is embedded again, or still there."""
    engine = one_at_a_time
    victim, urgent = golden_cases["img_square"], golden_cases["text_2_2_2"]
    engine.add_case(victim, priority=5)
    engine.step(3)
    engine.add_case(urgent, priority=-1)
    answers = engine.finish()
    assert tuple(answers[victim.name].token_ids) == victim.output_ids
    assert tuple(answers[urgent.name].token_ids) == urgent.output_ids


@pytest.mark.parametrize("num_steps", [1, 3])
def test_pruned_request_is_preempted(
    one_at_a_time: Engine, golden_cases, num_steps: int
):
    """It starts whole again, and prunes again to the same tokens."""
    engine = one_at_a_time
    victim, urgent = golden_cases["prune_r75_k3_all"], golden_cases["text_2_2_2"]
    with recorded_pruning(engine) as stages:
        engine.add_case(victim, priority=5)
        engine.step(num_steps)
        engine.add_case(urgent, priority=-1)
        answers = engine.finish()
    first, second = stages[victim.name]
    assert first.kept.tolist() == second.kept.tolist()
    assert tuple(answers[victim.name].token_ids) == victim.output_ids
    assert tuple(answers[urgent.name].token_ids) == urgent.output_ids
    assert engine.free_blocks == engine.all_blocks


def test_equal_priority_waits(one_at_a_time: Engine, golden_cases):
    engine = one_at_a_time
    engine.reset_observations()
    first, second = golden_cases["text_stop_blocks"], golden_cases["text_2_2_2"]
    engine.add_case(first, priority=1)
    engine.step(2)
    engine.add_case(second, priority=1)
    answers = engine.finish()
    assert engine.admitted == [first.name, second.name]
    for case in (first, second):
        assert tuple(answers[case.name].token_ids) == case.output_ids


def test_random_sampling_survives_preemption(one_at_a_time: Engine, text_case):
    """The noise is drawn again from the seed, from the start."""
    engine = one_at_a_time
    changes = {"temperature": 0.8, "seed": 11}
    alone = engine.answer_case(text_case, **changes).token_ids
    engine.add_case(text_case, "victim", priority=1, **changes)
    engine.step(13)
    engine.add_case(text_case, "urgent", priority=0)
    answers = engine.finish()
    assert answers["victim"].token_ids == alone
    assert tuple(answers["urgent"].token_ids) == text_case.output_ids


def test_least_important_makes_room_for_blocks(few_blocks: Engine, golden_cases):
    """Two requests fill the pool; the third takes the place of the one with the
    largest priority number, and the other goes on."""
    engine = few_blocks
    cases = [
        golden_cases[name] for name in ("text_32_32_32", "text_32_8_32", "text_stop")
    ]
    for case, priority in zip(cases, (1, 2, 0), strict=True):
        engine.add_case(case, priority=priority)
        engine.step(3)
    assert set(engine.running) == {cases[0].name, cases[2].name}
    answers = engine.finish()
    for case in cases:
        assert tuple(answers[case.name].token_ids) == case.output_ids
    assert engine.free_blocks == engine.all_blocks
