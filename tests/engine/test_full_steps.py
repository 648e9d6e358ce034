# SPDX-License-Identifier: Apache-2.0
"""Full steps are limited where cached ones would wait for them."""

from collections.abc import Iterator
from typing import Any

import pytest
from vllm.platforms import current_platform

from tests.engine.harness import Engine, prompt_of, sampling_of

LIMIT = 400
CACHED = {"cache": "prompt", "refresh_interval": 100}


@pytest.fixture(scope="session")
def shared_limited(start_engine, tiny_checkpoint) -> Engine:
    return start_engine(
        tiny_checkpoint,
        additional_config={"lladav": {"full_step_tokens": LIMIT}},
        max_num_seqs=12,
    )


@pytest.fixture
def limited(shared_limited: Engine) -> Iterator[Engine]:
    shared_limited.reset_observations()
    yield shared_limited
    shared_limited.finish()
    assert shared_limited.free_blocks == shared_limited.all_blocks


def add(engine: Engine, case, name: str, **extra) -> str:
    params = sampling_of(case)
    params.extra_args |= extra
    return engine.add(prompt_of(case), params, name)


def test_first_steps_come_a_few_at_a_time(limited: Engine, golden_cases):
    """Eight requests come while one denoises with a cache: it runs in every iteration,
    they are admitted in order as the limit allows, and the answers are the same."""
    case = golden_cases["text_32_32_32"]
    first = case.prompt_len + 32
    per_iteration = LIMIT // first
    assert 1 < per_iteration < 8
    alone = limited.answer(prompt_of(case), _cached(case)).token_ids
    add(limited, case, "running", **CACHED)
    limited.step(2)
    limited.reset_observations()
    names = [add(limited, case, f"new{i}", **CACHED) for i in range(8)]
    for count in range(1, 4):
        limited.step()
        assert limited.admitted == names[: count * per_iteration]
        earlier = 1 + (count - 1) * per_iteration
        expected = earlier * 32 + per_iteration * first
        assert limited.num_scheduled[-1] == expected
    answers = limited.finish()
    assert limited.admitted == names
    assert [answers[name].token_ids for name in names] == [alone] * 8


def test_nothing_waits_where_no_step_is_cached(limited: Engine, golden_cases):
    case = golden_cases["text_32_32_32"]
    names = [add(limited, case, f"exact{i}") for i in range(8)]
    limited.step()
    assert limited.admitted == names
    limited.step()
    assert limited.num_scheduled[-1] == 8 * (case.prompt_len + 32)
    answers = limited.finish()
    assert all(tuple(answers[name].token_ids) == case.output_ids for name in names)


def test_exact_requests_take_turns_beside_cached_ones(limited: Engine, golden_cases):
    """All of them get on, newcomers too, and end with the official tokens."""
    case = golden_cases["text_32_32_32"]
    add(limited, case, "cached", **CACHED)
    limited.step(2)
    exact = [add(limited, case, f"exact{i}") for i in range(4)]
    limited.step(4)
    newcomer = add(limited, case, "newcomer", **CACHED)
    limited.step(4)
    assert newcomer in limited.running
    progress = {
        request.request_id.rpartition("-")[0]: limited.scheduler._progress[
            request.request_id
        ].step.index.step
        for request in limited.scheduler.running
    }
    steps = [progress[name] for name in exact]
    assert max(steps) - min(steps) <= 1
    assert min(steps) > 1
    assert progress["cached"] == 10
    answers = limited.finish()
    assert all(tuple(answers[name].token_ids) == case.output_ids for name in exact)


@pytest.mark.skipif(not current_platform.is_cpu(), reason="attention of CPUs")
def test_full_steps_do_not_read_the_kv_blocks(
    limited: Engine, golden_cases, monkeypatch: pytest.MonkeyPatch
):
    """vLLM builds the metadata of the attention that the worker's state chose."""
    from vllm_lladav.worker.cpu_attention import (
        SplitAttentionImpl,
        SplitAttentionMetadata,
    )

    is_split: list[bool] = []
    forward = SplitAttentionImpl.forward

    def record(self: Any, *args: Any, **kwargs: Any) -> Any:
        metadata = kwargs.get("attn_metadata", args[5] if len(args) > 5 else None)
        is_split.append(isinstance(metadata, SplitAttentionMetadata))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(SplitAttentionImpl, "forward", record)
    limited.answer(prompt_of(case := golden_cases["text_32_32_32"]), _cached(case))
    num_layers = len(limited.model.attentions())
    assert is_split == [True] * num_layers + [False] * (31 * num_layers)


def _cached(case):
    params = sampling_of(case)
    params.extra_args |= CACHED
    return params
