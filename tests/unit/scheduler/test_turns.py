# SPDX-License-Identifier: Apache-2.0
"""Who runs in an iteration: nobody starves, whatever the others do."""

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vllm.config import VllmConfig
from vllm.v1.core.sched.request_queue import SchedulingPolicy, create_request_queue
from vllm.v1.request import Request

from tests.unit.scheduler.rig import KNEE, WORD, Rig, make_request
from vllm_lladav.scheduler.turns import MOST_PASSED_OVER

ENDLESS = 1000
FIXTURE = [HealthCheck.function_scoped_fixture]


def cached(name: str, prompt_len: int, refresh_interval: int, **changes) -> Request:
    """A full step computes ``prompt_len`` + 8 tokens, others compute 8."""
    return make_request(
        name, prompt_len, cache="prompt", refresh_interval=refresh_interval, **changes
    )


def exact(name: str, prompt_len: int, steps: int = 8) -> Request:
    """Every step computes ``prompt_len`` + 8 tokens."""
    return make_request(name, prompt_len, gen_length=8, steps=steps, block_length=8)


def ran(rig: Rig) -> list[str]:
    """Who ran, iteration by iteration."""
    return ["".join(tokens) for tokens in rig.scheduled if tokens]


def test_equal_requests_end_one_after_the_other(config: VllmConfig):
    """First come, first served, with one full step in an iteration."""
    rig = Rig(config, budget=100, full_step_tokens=50)
    rig.add(exact("a", 32, 4), exact("b", 32, 4))
    rig.step(2)
    rig.add(exact("c", 32, 4))
    rig.finish()
    assert ran(rig) == ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    assert rig.admitted == ["a", "b", "c"]
    assert all(answer == [WORD] * 8 for answer in rig.answers.values())


@pytest.mark.parametrize("full_step_tokens, at_once", [(0, 2), (79, 1), (80, 2)])
def test_as_many_full_steps_as_the_limits_allow(
    config: VllmConfig, full_step_tokens: int, at_once: int
):
    """Of 40 tokens each, in an iteration with tokens for two of them."""
    rig = Rig(config, budget=100, full_step_tokens=full_step_tokens)
    rig.add(*(exact(name, 32) for name in "abc"))
    rig.step()
    assert ran(rig) == ["ab"[:at_once]]
    rig.finish()
    assert rig.admitted == ["a", "b", "c"]


def test_who_needs_little_goes_first(config: VllmConfig):
    """Among those that wait and those that run, but for a third of the turns."""
    rig = Rig(config, budget=100, full_step_tokens=50)
    rig.add(exact("a", 32), exact("b", 32, 4))
    rig.step(1)
    rig.add(exact("c", 32, 2))
    rig.finish()
    assert ran(rig) == list("bcacbabbaaaaaa")


def test_the_larger_of_two_waits(config: VllmConfig):
    """90 tokens do not fit beside 40; they are the first ones in an iteration then."""
    rig = Rig(config, budget=100)
    rig.add(exact("a", 32), exact("b", 82), exact("c", 12))
    rig.finish()
    assert ran(rig)[:5] == ["ca", "ca", "ca", "ca", "ca"]
    assert ran(rig)[8:] == ["b"] * 8
    assert rig.admitted == ["c", "a", "b"]


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


def test_a_large_request_in_front_has_its_blocks(config: VllmConfig):
    """Of 11 KV blocks it needs 9, and small ones that keep coming need 2. They are held
    back until it has room, and may then go before it within what it leaves."""
    rig = Rig(config, budget=100, num_kv_blocks=12, full_step_tokens=64)
    early = [f"early{number}" for number in range(4)]
    rig.add(*(exact(name, 8, 4) for name in early))
    rig.step()
    rig.add(exact("large", 64))
    for number in range(ENDLESS):
        rig.add(exact(f"late{number}", 8, 1))
        rig.step()
        if "large" in rig.admitted:
            break
        assert rig.admitted == early or rig.ended.keys() >= {*early}
    assert rig.admitted.index("large") <= len(early) + MOST_PASSED_OVER


def test_refreshes_that_exceed_the_budget_wait_their_turn(config: VllmConfig):
    """An iteration has tokens for two of them. What waits is who needs most."""
    rig = Rig(config, budget=100)
    rig.add(*(cached(name, 32, 4) for name in "abc"))
    rig.finish()
    assert [rows for rows in rig.full_rows if rows] == [80, 80, 40, 40]
    assert rig.admitted == ["a", "b", "c"]
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
    # Passed over by others, beside as many iterations of cached steps.
    assert rig.longest_wait["large"] <= 2 * (MOST_PASSED_OVER + 1)


@settings(max_examples=20, deadline=None, suppress_health_check=FIXTURE)
@given(st.integers(1, 12), st.integers(1, 3), st.sampled_from([60, 80, 92]))
def test_cached_steps_wait_for_one_full_step_at_most(
    config: VllmConfig, num_cached: int, num_exact: int, exact_len: int
):
    """In a row, though together they exceed the token budget, and exact requests ask
    for one in every iteration."""
    rig = Rig(config, budget=100, full_step_tokens=50)
    names = [f"cached{number}" for number in range(num_cached)]
    rig.add(*(cached(name, 4, 100, gen_length=8) for name in names))
    rig.step(num_cached)
    rig.add(*(exact(f"exact{number}", exact_len) for number in range(num_exact)))
    rig.longest_wait.clear()
    rig.finish()
    assert max(rig.longest_wait[name] for name in names) <= 2
    assert len(rig.ended) == num_cached + num_exact


@settings(max_examples=20, deadline=None, suppress_health_check=FIXTURE)
@given(st.integers(1, 8), st.integers(1, 3), st.integers(24, 90), st.booleans())
def test_full_steps_are_held_for_as_long_as_one_takes(
    config: VllmConfig, num_cached: int, num_exact: int, exact_len: int, is_async: bool
):
    """And cached ones go on in the meantime."""
    rig = Rig(config, budget=1000, full_step_tokens=50)
    rig.add(*(cached(f"c{i}", 4, 100, gen_length=64) for i in range(num_cached)))
    rig.step(num_cached)
    rig.add(*(exact(f"exact{number}", exact_len) for number in range(num_exact)))
    under_way: list = []
    while not all(f"exact{number}" in rig.ended for number in range(num_exact)):
        under_way.append(rig.dispatch())
        if len(under_way) > is_async:
            rig.receive(under_way.pop(0))
    while not rig.full_rows[-1]:  # Nobody wants one any more.
        rig.full_rows.pop()
    first = next(i for i in range(num_cached, ENDLESS) if rig.full_rows[i])
    iterations = list(zip(rig.scheduled, rig.full_rows, strict=False))[first:]
    for tokens, full_rows in iterations:
        if full_rows:
            last, cost = full_rows, 0
        else:
            cost += max(sum(tokens.values()), KNEE)
            assert cost <= last
    is_held = any(not full_rows for _, full_rows in iterations)
    assert is_held == (64 * num_cached <= exact_len + 8)


def test_a_newcomer_beside_exact_requests(config: VllmConfig):
    """Its first step is due as theirs are, and it needs fewer."""
    rig = Rig(config, budget=1000, full_step_tokens=50)
    rig.add(cached("cached", 32, 100, gen_length=64))
    rig.step()
    rig.add(*(exact(f"exact{number}", 32) for number in range(3)))
    rig.step(4)
    rig.add(cached("new", 32, 100))
    rig.step(2)
    assert rig.admitted == ["cached", "exact0", "new"]
    # One full step beside the cached ones.
    assert all(tokens["cached"] == 64 for tokens in rig.scheduled[1:])
    assert all(len(tokens) == 2 for tokens in rig.scheduled[2:6])


def test_a_refresh_beside_exact_requests(config: VllmConfig):
    """Exact requests ask for their full steps in every iteration, and new ones come as
    old ones end."""
    rig = Rig(config, budget=100, full_step_tokens=50)
    rig.add(cached("cached", 32, 2, gen_length=8))
    rig.step()
    for number in range(ENDLESS):
        rig.add(exact(f"exact{number}", 32))
        rig.step()
        if "cached" in rig.ended:
            break
    assert rig.longest_wait["cached"] <= 3


MODES = st.fixed_dictionaries(
    {
        "cache": st.sampled_from(["none", "prompt", "prefix", "dual"]),
        "refresh_interval": st.integers(1, 6),
        "cfg_scale": st.sampled_from([0.0, 0.0, 0.5]),
        "block_length": st.sampled_from([4, 8]),
    }
)


@settings(max_examples=60, deadline=None, suppress_health_check=FIXTURE)
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
    waits for more than the steps of all others, and no KV block is lost. Scheduler and
    worker agree on the tokens of every step (see the rig)."""
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
    bound = 8 * len(requests) + 2 * is_async
    assert max(rig.longest_wait.values()) <= bound
    for output in under_way:
        rig.receive(output)
    assert rig.free_blocks == free
    assert not rig.scheduler._progress


@settings(max_examples=20, deadline=None, suppress_health_check=FIXTURE)
@given(st.lists(st.tuples(st.integers(20, 80), MODES), min_size=1, max_size=4))
def test_a_stream_of_short_requests_starves_nobody(config: VllmConfig, requests: list):
    """One comes in every iteration and would always go first. The others have a third
    of the iterations with full steps, and cached steps between two of those cost no
    more than one of them."""
    rig = Rig(config, budget=200, full_step_tokens=20)
    for number, (prompt_len, mode) in enumerate(requests):
        rig.add(make_request(f"r{number}", prompt_len, **mode))
    names = {f"r{number}" for number in range(len(requests))}
    largest = 2 * (80 + 8)  # A guided one has two sequences.
    most_held = 1 + largest // KNEE
    for number in range(8 * len(requests) * (MOST_PASSED_OVER + 1) * most_held):
        rig.add(exact(f"short{number}", 4, 1))
        rig.step()
        if names <= rig.ended.keys():
            break
    assert names <= rig.ended.keys()


def test_a_busy_encoder_holds_back_those_behind(config: VllmConfig):
    """It encodes 20 visual tokens in an iteration. The third request would fit, but if
    it went first again and again, the second would never begin."""
    rig = Rig(config, budget=1000)
    rig.scheduler.max_num_encoder_input_tokens = 20
    for name, num_visual in (("a", 12), ("b", 12), ("c", 4)):
        rig.add(make_request(name, 20, images=(num_visual,)))
    rig.step(2)
    assert ran(rig) == ["a", "abc"]
    rig.finish()


def test_a_more_important_request_preempts(config: VllmConfig):
    """The victim starts again and emits only what it did not emit before."""
    rig = Rig(config, budget=1000, num_kv_blocks=12)
    rig.scheduler.policy = SchedulingPolicy.PRIORITY
    rig.scheduler.waiting = create_request_queue(SchedulingPolicy.PRIORITY)
    rig.add(*(make_request(name, 32, priority=1) for name in "ab"))
    rig.step(3)
    rig.add(make_request("urgent", 32))
    rig.step()
    assert set(rig.scheduled[-1]) == {"a", "urgent"}
    rig.finish()
    assert rig.admitted == ["a", "b", "urgent", "b"]
    assert all(answer == [WORD] * 8 for answer in rig.answers.values())
    assert rig.free_blocks == 11
