# SPDX-License-Identifier: Apache-2.0
"""Steps are scheduled while the one before runs, and nothing changes.

vLLM switches asynchronous scheduling off on CPUs; it is switched on again here.
"""

from unittest.mock import patch

import pytest
from vllm.platforms.cpu import CpuPlatform

from tests.engine.harness import Engine, is_servable, prompt_of, sampling_of
from tests.golden.cases import load_cases

CASES = [
    case.name
    for case in load_cases().values()
    if is_servable(case) and not case.head_gains and not case.images
]


def start(start_engine, checkpoint, **options) -> Engine:
    check_config = CpuPlatform.check_and_update_config.__func__  # type: ignore

    def keep_async(cls, vllm_config):
        check_config(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = True

    with patch.object(CpuPlatform, "check_and_update_config", classmethod(keep_async)):
        engine = start_engine(checkpoint, **options)
    assert engine.core.batch_queue is not None
    return engine


@pytest.fixture(scope="session")
def async_engine(start_engine, tiny_checkpoint) -> Engine:
    return start(start_engine, tiny_checkpoint)


@pytest.mark.parametrize("name", ["text_32_32_32", "text_stop", "text_suffix_stop"])
def test_one_request(async_engine: Engine, golden_cases, name: str):
    """Also one that a stop ends while its next step is under way already."""
    case = golden_cases[name]
    async_engine.reset_observations()
    answer = async_engine.answer_case(case)
    assert tuple(answer.token_ids) == case.output_ids
    is_stopped = bool(case.generate.stopping_criteria)
    assert answer.finish_reason == ("stop" if is_stopped else "length")
    assert answer.stop_reason == ("<|eot_id|>" if is_stopped else None)
    assert async_engine.num_overlapped >= case.n_forward - 1
    assert async_engine.free_blocks == async_engine.all_blocks


def test_all_texts_at_once(async_engine: Engine, golden_cases):
    engine = async_engine
    engine.reset_observations()
    cases = [golden_cases[name] for name in CASES]
    for case in cases:
        engine.add_case(case)
        engine.step(2)
    answers = engine.finish()
    for case in cases:
        assert tuple(answers[case.name].token_ids) == case.output_ids
    assert engine.max_in_flight >= 8
    assert engine.num_overlapped > 40
    assert engine.free_blocks == engine.all_blocks


@pytest.mark.parametrize("policy", ["fastv", "adaptive"])
def test_pruning(async_engine: Engine, engine: Engine, golden_cases, policy: str):
    """Also where the next step waits for the worker to say how long it is."""
    case, other = golden_cases["img_square"], golden_cases["text_32_32_16"]
    params = sampling_of(case, max_tokens=8)
    params.extra_args |= {"gen_length": 8, "block_length": 8, "steps": 4}
    params.extra_args |= {"prune_stages": "1:2:0.5,3:3:0.5", "prune_tau": 0.5}
    params.extra_args |= {"prune_policy": policy, "prune_rate": None}
    alone = engine.answer(prompt_of(case), params)
    async_engine.reset_observations()
    async_engine.add_case(other)
    name = async_engine.add(prompt_of(case), params)
    answers = async_engine.finish()
    assert answers[name].token_ids == alone.token_ids
    reports = [a.last.kv_transfer_params["lladav"] for a in (answers[name], alone)]
    kept = [report["visual_tokens_kept"] for report in reports]
    assert kept[0] == kept[1] < sum(case.visual_tokens) / 2
    assert tuple(answers[other.name].token_ids) == other.output_ids
    assert async_engine.num_overlapped >= 8
    assert async_engine.free_blocks == async_engine.all_blocks


def test_abort_while_a_step_is_under_way(async_engine: Engine, golden_cases):
    engine = async_engine
    gone, other = golden_cases["text_32_32_32"], golden_cases["text_32_32_16"]
    engine.add_case(gone)
    engine.add_case(other)
    engine.step(5)
    engine.abort(gone.name)
    # The name is free again, and its canvas a new one.
    again = engine.add_case(gone, "again")
    answers = engine.finish()
    for name, case in ((other.name, other), (again, gone)):
        assert tuple(answers[name].token_ids) == case.output_ids
    assert engine.free_blocks == engine.all_blocks


def test_preemption_while_a_step_is_under_way(
    start_engine, tiny_checkpoint, golden_cases
):
    """Output of the steps that were under way is dropped, not emitted twice."""
    engine = start(
        start_engine, tiny_checkpoint, scheduling_policy="priority", max_num_seqs=1
    )
    victim, urgent = golden_cases["text_32_8_32"], golden_cases["text_stop"]
    for num_steps in (2, 9, 20, 32):
        engine.add_case(victim, priority=1)
        engine.step(num_steps)
        engine.add_case(urgent, priority=0)
        answers = engine.finish()
        assert tuple(answers[urgent.name].token_ids) == urgent.output_ids
        assert tuple(answers[victim.name].token_ids) == victim.output_ids
    assert engine.free_blocks == engine.all_blocks
