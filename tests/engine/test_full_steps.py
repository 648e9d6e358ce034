# SPDX-License-Identifier: Apache-2.0
"""Full steps are limited, and go to those first that need the least of them."""

from collections.abc import Iterator
from typing import Any

import pytest
from vllm.platforms import current_platform

from tests.engine.harness import Engine, prompt_of, sampling_of

LIMIT = 400
CACHED = {"cache": "prompt", "refresh_interval": 100}


@pytest.fixture(scope="session")
def shared_limited(start_engine, tiny_checkpoint) -> Engine:
    from vllm_lladav.scheduler.turns import Turns

    engine = start_engine(
        tiny_checkpoint,
        additional_config={"lladav": {"full_step_tokens": LIMIT}},
        max_num_seqs=12,
    )
    # The canvases of two requests are worth an iteration.
    engine.core.scheduler._turns = Turns(64)
    return engine


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
    num_admitted = 0
    while len(limited.admitted) < 8:
        limited.step()
        num_new = len(limited.admitted) - num_admitted
        assert num_new in (0, min(per_iteration, 8 - num_admitted))
        assert limited.num_scheduled[-1] == (1 + num_admitted) * 32 + num_new * first
        num_admitted += num_new
    assert "running" in limited.running
    answers = limited.finish()
    assert limited.admitted == names
    assert [answers[name].token_ids for name in names] == [alone] * 8


def test_exact_requests_are_finished_a_few_at_a_time(limited: Engine, golden_cases):
    """As many as fit into an iteration together. The others begin as they end."""
    case = golden_cases["text_32_32_32"]
    at_once = LIMIT // (case.prompt_len + 32)
    names = [add(limited, case, f"exact{i}") for i in range(2 * at_once)]
    limited.step(32)
    assert limited.admitted == names[:at_once]
    limited.step(32)
    assert limited.admitted == names
    assert limited.num_scheduled == [at_once * (case.prompt_len + 32)] * 64
    answers = limited.finish()
    assert all(tuple(answers[name].token_ids) == case.output_ids for name in names)


def test_exact_requests_beside_cached_ones(limited: Engine, golden_cases):
    """Cached steps run in every iteration, and in some without a full one; a newcomer
    with one full step goes before those with many; tokens are the official ones."""
    case = golden_cases["text_32_32_32"]
    full = case.prompt_len + 32
    cached_ones = [add(limited, case, f"cached{i}", **CACHED) for i in range(2)]
    limited.step(2)
    exact = [add(limited, case, f"exact{i}") for i in range(2 * (LIMIT // full))]
    limited.step(12)
    iterations = limited.num_scheduled[2:]
    assert set(iterations) == {2 * 32, 2 * 32 + LIMIT // full * full}
    assert set(cached_ones) <= set(limited.running)
    newcomer = add(limited, case, "newcomer", **CACHED)
    while newcomer not in limited.admitted:
        limited.step()
    assert exact[-1] not in limited.admitted
    answers = limited.finish()
    assert all(tuple(answers[name].token_ids) == case.output_ids for name in exact)


@pytest.mark.skipif(not current_platform.is_cpu(), reason="attention of CPUs")
@pytest.mark.parametrize("is_torch_faster", [True, False])
def test_full_steps_by_torch_or_by_vllm(
    start_engine,
    tiny_checkpoint,
    golden_cases,
    monkeypatch: pytest.MonkeyPatch,
    is_torch_faster: bool,
):
    """Whichever is the faster one here: vLLM builds the metadata of the attention that
    the worker's state chose, and tokens are the official ones."""
    from vllm_lladav.worker import cpu_attention

    monkeypatch.setattr(cpu_attention, "is_torch_faster", lambda: is_torch_faster)
    engine = start_engine(tiny_checkpoint)
    is_split: list[bool] = []
    owner = type(engine.model.attentions()[0].impl)
    forward = owner.forward

    def record(self: Any, *args: Any, **kwargs: Any) -> Any:
        metadata = kwargs.get("attn_metadata", args[5] if len(args) > 5 else None)
        is_split.append(isinstance(metadata, cpu_attention.SplitAttentionMetadata))
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(owner, "forward", record)
    case, num_layers = golden_cases["text_32_32_32"], len(engine.model.attentions())
    assert tuple(engine.answer_case(case).token_ids) == case.output_ids
    assert is_split == [is_torch_faster] * (32 * num_layers)
    is_split.clear()
    engine.answer(prompt_of(case), _cached(case))
    # Cached steps read the KV blocks.
    first = [is_torch_faster] * num_layers
    assert is_split[: 2 * num_layers] == first + [False] * num_layers


def _cached(case):
    params = sampling_of(case)
    params.extra_args |= CACHED
    return params
