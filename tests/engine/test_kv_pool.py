# SPDX-License-Identifier: Apache-2.0
"""KV blocks: taken at admission, given back whatever ends the request."""

import pytest
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

from tests.engine.harness import (
    KV_BLOCK,
    KV_BLOCK_BYTES,
    is_servable,
    prompt_of,
    sampling_of,
)
from tests.golden.cases import GoldenCase

SMALL_MODEL_LEN = 512


@pytest.fixture(scope="session")
def small_engine(start_engine, tiny_checkpoint):
    """Four KV blocks: two of the text requests at a time."""
    return start_engine(
        tiny_checkpoint,
        max_model_len=SMALL_MODEL_LEN,
        kv_cache_memory_bytes=5 * KV_BLOCK_BYTES,
    )


def test_pool_of_a_single_short_request(start_engine, tiny_checkpoint, golden_cases):
    """Unless it is sized, a CPU's pool holds the longest request, however short."""
    engine = start_engine(
        tiny_checkpoint,
        max_model_len=125,
        max_num_batched_tokens=125,
        max_num_seqs=1,
        kv_cache_memory_bytes=None,
    )
    prompt = {"prompt_token_ids": [5] * 90}
    args = {"gen_length": 32, "steps": 2}
    params = SamplingParams(temperature=0, max_tokens=None, extra_args=args)
    assert len(engine.answer(prompt, params).token_ids) == 32


def num_blocks(case: GoldenCase) -> int:
    """Of a request without suffix."""
    return -(-(case.prompt_len + case.generate.gen_length) // KV_BLOCK)


def test_blocks_are_held_until_the_answer(engine, golden_cases):
    """From the first step to the last: prompt and canvas, and nothing more."""
    case = golden_cases["img_square"]
    engine.add_case(case)
    assert engine.free_blocks == engine.all_blocks
    for _ in range(case.generate.steps - 1):
        engine.step()
        assert engine.all_blocks - engine.free_blocks == num_blocks(case)
    engine.step()
    assert engine.free_blocks == engine.all_blocks
    assert not engine.is_busy


def test_blocks_are_back_after_a_stop(engine, golden_cases):
    engine.answer_case(golden_cases["text_stop_first"])
    assert engine.free_blocks == engine.all_blocks


@pytest.mark.parametrize("num_steps", [0, 1, 5])
def test_abort_gives_everything_back(engine, golden_cases, num_steps: int):
    """Waiting or running; the others do not notice."""
    other, gone = golden_cases["text_32_32_16"], golden_cases["img_square"]
    engine.add_case(other)
    engine.add_case(gone)
    engine.step(num_steps)
    engine.abort(gone.name)
    answers = engine.finish()
    assert tuple(answers[other.name].token_ids) == other.output_ids
    assert answers[gone.name].output is None or not answers[gone.name].output.finished
    assert engine.free_blocks == engine.all_blocks
    assert not engine.scheduler.requests
    assert not engine.scheduler._progress


def test_refused_request_leaves_nothing_behind(engine, text_case):
    """An error at the door is the caller's, not the engine's."""
    for params in (
        SamplingParams(extra_args={"gen_length": 5000}),
        SamplingParams(max_tokens=8, prompt_logprobs=1, temperature=0.0),
        SamplingParams(extra_args={"gen_length": 0}),
    ):
        with pytest.raises(VLLMValidationError):
            engine.add(prompt_of(text_case), params)
    assert not engine.is_busy
    assert not engine.scheduler.requests
    assert engine.free_blocks == engine.all_blocks
    assert tuple(engine.answer_case(text_case).token_ids) == text_case.output_ids


def test_request_larger_than_max_model_len_is_refused(small_engine, text_case):
    engine = small_engine
    length = SMALL_MODEL_LEN - text_case.prompt_len
    too_long = SamplingParams(extra_args={"gen_length": length, "block_length": length})
    with pytest.raises(VLLMValidationError, match="max_model_len") as error:
        engine.add(prompt_of(text_case), too_long)
    assert f"prompt ({text_case.prompt_len})" in str(error.value)
    assert f"= {SMALL_MODEL_LEN} tokens" in str(error.value)
    assert tuple(engine.answer_case(text_case).token_ids) == text_case.output_ids


def test_request_larger_than_the_pool_is_refused(
    small_engine, text_case, monkeypatch: pytest.MonkeyPatch
):
    """It would wait for ever. vLLM does not start with a pool below max_model_len,
    so the front end is told of one: three blocks, of which vLLM keeps one."""
    engine = small_engine
    cache_config = engine.llm.llm_engine.vllm_config.cache_config
    monkeypatch.setattr(cache_config, "num_gpu_blocks", 3)
    slots = 2 * KV_BLOCK

    def one_step(length: int) -> SamplingParams:
        extra = {"gen_length": length, "block_length": length, "steps": 1}
        return SamplingParams(max_tokens=length, ignore_eos=True, extra_args=extra)

    over = one_step(slots + 1 - text_case.prompt_len)
    with pytest.raises(VLLMValidationError, match="KV cache") as error:
        engine.add(prompt_of(text_case), over)
    assert f"= {slots + 1} tokens" in str(error.value)
    assert f"at most {slots} tokens" in str(error.value)
    assert not engine.is_busy
    largest = one_step(slots - text_case.prompt_len)
    answer = engine.answer(prompt_of(text_case), largest)
    assert len(answer.token_ids) == slots - text_case.prompt_len


def test_small_pool_serves_everybody(small_engine, golden_cases):
    """Requests wait, all finish with their tokens, and none overtakes one that there is
    no room for: the long one is not starved by the short ones behind it."""
    engine = small_engine
    assert engine.all_blocks == 4
    engine.reset_observations()
    text = {
        name: case
        for name, case in golden_cases.items()
        if is_servable(case) and not case.images and not case.head_gains
    }
    long = SamplingParams(
        max_tokens=3 * KV_BLOCK - 140,
        temperature=0.0,
        ignore_eos=True,
        extra_args={"steps": 4},
    )
    names = []
    for index, (name, case) in enumerate(text.items()):
        if index == 2:
            names.append(engine.add(prompt_of(case), long, "long"))
        names.append(engine.add(prompt_of(case), sampling_of(case), name))
    answers = engine.finish()
    assert sorted(engine.admitted) == sorted(names)
    assert engine.admitted.index("long") == names.index("long") == 2
    assert len(answers.pop("long").token_ids) == 3 * KV_BLOCK - 140
    assert {name: tuple(a.token_ids) for name, a in answers.items()} == {
        name: case.output_ids for name, case in text.items()
    }
    assert engine.max_in_flight == 2
    assert engine.free_blocks == engine.all_blocks
