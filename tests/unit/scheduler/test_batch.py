# SPDX-License-Identifier: Apache-2.0
"""What is left of an iteration's budget."""

from typing import Any

import pytest
from vllm.v1.core.kv_cache_manager import KVCacheBlocks

from tests.unit.scheduler.rig import make_request
from vllm_lladav.denoising.params import denoising_params
from vllm_lladav.denoising.plan import Step, StepIndex, StepPlan
from vllm_lladav.scheduler.batch import Batch

NO_BLOCKS = KVCacheBlocks(((),))


def step_of(prompt_len: int, number: int = 0) -> Step:
    """Full steps compute ``prompt_len`` + 8 tokens, those from 1 on compute 8."""
    request = make_request("any", prompt_len, cache="prompt", refresh_interval=9)
    params = denoising_params(request.sampling_params)
    return StepPlan(params, prompt_len).at(StepIndex(number, 0, number), 0)


def take(batch: Batch, name: str, step: Step) -> Any:
    request = make_request(name, 4)
    batch.take(request, step, NO_BLOCKS)
    batch.running.append(request)
    return request


def test_token_budget():
    batch = Batch(100, 0, 0)
    assert batch.allows(step_of(92))
    assert not batch.allows(step_of(93))
    take(batch, "a", step_of(52))
    assert batch.allows(step_of(32)) and not batch.allows(step_of(33))
    assert batch.num_tokens == {"a": 60}


def test_full_steps_are_limited_but_one():
    batch = Batch(1000, 0, 100)
    assert batch.allows(step_of(500))
    take(batch, "a", step_of(52))
    assert batch.allows(step_of(32)) and not batch.allows(step_of(33))
    # Cached steps count for nothing.
    take(batch, "b", step_of(500, number=1))
    assert (batch.full_rows, batch.cached_rows) == ({"a": 60}, 8)
    assert batch.allows(step_of(500, number=1))
    assert batch.allows(step_of(32)) and not batch.allows(step_of(33))


@pytest.mark.parametrize("is_full", [True, False])
def test_what_is_dropped_is_given_back(is_full: bool):
    batch = Batch(100, 0, 100)
    request = take(batch, "a", step_of(82, number=0 if is_full else 1))
    batch.drop(request)
    assert batch.token_budget == 100
    assert batch.allows(step_of(92))
    assert not batch.running and not batch.num_tokens and not batch.blocks
    assert not batch.full_rows and batch.cached_rows == 0
    # One that was not scheduled yet.
    batch.drop(make_request("waits", 4))
    assert batch.preempted == {"a", "waits"}
