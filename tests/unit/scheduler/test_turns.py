# SPDX-License-Identifier: Apache-2.0
"""Who runs in an iteration: nobody starves, whatever the others do."""

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vllm.config import VllmConfig
from vllm.v1.core.sched.request_queue import SchedulingPolicy, create_request_queue
from vllm.v1.request import Request

from tests.unit.scheduler.rig import WORD, Rig, make_request

ENDLESS = 1000


def cached(name: str, prompt_len: int, refresh_interval: int, **changes) -> Request:
    """A full step computes ``prompt_len`` + 8 tokens, others compute 8."""
    return make_request(
        name, prompt_len, cache="prompt", refresh_interval=refresh_interval, **changes
    )


def test_admission_is_in_order(config: VllmConfig):
    """Tokens of exact requests: 40, 90, 20. The second does not fit beside the first,
    and holds back the third."""
    rig = Rig(config, budget=100)
    rig.add(make_request("a", 32), make_request("b", 82), make_request("c", 12))
    rig.step()
    assert rig.scheduled == [{"a": 40}]
    rig.step(7)  # The eight steps of "a".
    rig.step()
    assert rig.scheduled[-1] == {"b": 90}
    rig.finish()
    assert rig.admitted == ["a", "b", "c"]
    assert all(answer == [WORD] * 8 for answer in rig.answers.values())


def test_admission_waits_for_kv_blocks(config: VllmConfig):
    """Of the 12 KV blocks vLLM keeps one; a request needs five."""
    rig = Rig(config, budget=1000, num_kv_blocks=12)
    rig.add(*(make_request(name, 32) for name in "abc"))
    rig.step()
    assert list(rig.scheduled[0]) == ["a", "b"]
    assert rig.free_blocks == 1
    rig.finish()
    assert rig.admitted == ["a", "b", "c"]
    assert rig.free_blocks == 11


def test_a_guided_request_counts_twice(config: VllmConfig):
    """Tokens, KV blocks and sequences."""
    rig = Rig(config, budget=1000, max_seqs=3)
    rig.add(*(make_request(name, 31, cfg_scale=0.5) for name in "ab"))
    free = rig.free_blocks
    rig.step()
    assert rig.scheduled == [{"a": 78}]
    assert free - rig.free_blocks == 10
    rig.finish()


def test_refreshes_that_exceed_the_budget_wait_their_turn(config: VllmConfig):
    """Three requests, admitted beside each other's short steps, refresh in one
    iteration, which has tokens for two of them. The third is first in the next."""
    rig = Rig(config, budget=100)
    rig.add(cached("a", 32, 4), cached("b", 32, 4))
    rig.step(1)
    rig.add(cached("c", 32, 3))
    rig.step(3)
    assert rig.scheduled[1] == {"a": 8, "b": 8, "c": 40}
    rig.step()
    assert rig.scheduled[4] == {"a": 40, "b": 40}
    rig.step()
    assert rig.scheduled[5] == {"c": 40, "a": 8, "b": 8}
    assert next(iter(rig.scheduled[5])) == "c"
    rig.finish()
    assert all(answer == [WORD] * 8 for answer in rig.answers.values())


@pytest.mark.parametrize("full_step_tokens", [0, 50])
def test_a_large_refresh_beside_a_stream_of_small_requests(
    config: VllmConfig, full_step_tokens: int
):
    """Short steps and small newcomers always leave less than it needs."""
    rig = Rig(config, budget=100, full_step_tokens=full_step_tokens)
    rig.add(cached("large", 82, 2))
    rig.step()
    for number in range(ENDLESS):
        rig.add(cached(f"small{number}", 4, 100))
        rig.step()
        if "large" in rig.ended:
            break
    assert "large" in rig.ended
    assert rig.longest_wait["large"] <= 2


@pytest.mark.parametrize("full_step_tokens", [0, 50])
def test_a_refresh_beside_exact_requests(config: VllmConfig, full_step_tokens: int):
    """Exact requests ask for their full steps in every iteration, and new ones come as
    old ones end."""
    rig = Rig(config, budget=100, full_step_tokens=full_step_tokens)
    rig.add(cached("cached", 32, 2, gen_length=8))
    rig.step()
    for number in range(ENDLESS):
        rig.add(make_request(f"exact{number}", 32))
        rig.step()
        if "cached" in rig.ended:
            break
    assert "cached" in rig.ended
    assert rig.longest_wait["cached"] <= 3


def test_a_newcomer_beside_exact_requests(config: VllmConfig):
    """Where full steps take turns, first ones do as well."""
    rig = Rig(config, budget=1000, full_step_tokens=50)
    rig.add(cached("cached", 32, 100, gen_length=64))
    rig.step()
    rig.add(*(make_request(f"exact{number}", 32) for number in range(3)))
    rig.step(4)
    rig.add(cached("new", 32, 100))
    rig.step(4)
    assert "new" in rig.admitted
    turns = rig.scheduled[1:9]
    assert all(tokens["cached"] == 64 for tokens in turns)
    assert all(len(tokens) == 2 for tokens in turns[:4])


MODES = st.fixed_dictionaries(
    {
        "cache": st.sampled_from(["none", "prompt", "prefix", "dual"]),
        "refresh_interval": st.integers(1, 6),
        "cfg_scale": st.sampled_from([0.0, 0.0, 0.5]),
        "block_length": st.sampled_from([4, 8]),
    }
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    requests=st.lists(
        st.tuples(st.integers(0, 12), st.integers(1, 40), MODES),
        min_size=1,
        max_size=12,
    ),
    full_step_tokens=st.sampled_from([0, 30, 100]),
    is_async=st.booleans(),
)
def test_everybody_gets_on(
    config: VllmConfig, requests: list, full_step_tokens: int, is_async: bool
):
    """Requests of all modes come in any iteration. Each ends with its answer, none
    waits for more steps of the others than there are requests, and no KV block is
    lost. Scheduler and worker agree on the tokens of every step (see the rig)."""
    rig = Rig(config, budget=100, full_step_tokens=full_step_tokens)
    free = rig.free_blocks
    under_way: list = []
    for iteration in itertools.count():
        for number, (comes, prompt_len, mode) in enumerate(requests):
            if comes == iteration:
                rig.add(make_request(f"r{number}", prompt_len, **mode))
        under_way.append(rig.dispatch())
        if len(under_way) > is_async:
            rig.receive(under_way.pop(0))
        if len(rig.ended) == len(requests):
            break
        assert iteration < ENDLESS
    assert rig.answers == {f"r{i}": [WORD] * 8 for i in range(len(requests))}
    bound = len(requests) + 2 * is_async
    assert max(rig.longest_wait.values()) <= bound
    for output in under_way:
        rig.receive(output)
    assert rig.free_blocks == free
    assert not rig.scheduler._progress


def test_a_more_important_request_preempts(config: VllmConfig):
    """The victim starts again and emits only what it did not emit before."""
    rig = Rig(config, budget=1000, num_kv_blocks=12)
    rig.scheduler.policy = SchedulingPolicy.PRIORITY
    rig.scheduler.waiting = create_request_queue(SchedulingPolicy.PRIORITY)
    rig.add(*(make_request(name, 32, priority=1) for name in "ab"))
    rig.step(3)
    rig.add(make_request("urgent", 32))
    rig.step()
    assert list(rig.scheduled[-1]) == ["a", "urgent"]
    rig.finish()
    assert rig.admitted == ["a", "b", "urgent", "b"]
    assert all(answer == [WORD] * 8 for answer in rig.answers.values())
    assert rig.free_blocks == 11
