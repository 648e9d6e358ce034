# SPDX-License-Identifier: Apache-2.0
"""The order of full steps, and when they wait for cached ones: values only."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from vllm_lladav.scheduler.turns import MOST_PASSED_OVER, Turn, Turns

KNEE = 10


def turn(name: str, rows_left: int, arrival: int = 0, priority: int = 0) -> Turn:
    return Turn(priority, rows_left, arrival, name, is_exact=True)


def names(turns: list[Turn]) -> list[str]:
    return [turn.request_id for turn in turns]


def run(turns: Turns, ordered: list[Turn], rows: int = 100, width: int = 1) -> None:
    """The steps of the first ones."""
    full_rows = {turn.request_id: rows for turn in ordered[:width]}
    turns.count(ordered, full_rows, 0, False)


def test_least_work_goes_first():
    due = [turn("more", 300, 0), turn("less", 100, 2), turn("equal", 100, 1)]
    assert names(Turns(KNEE).ordered(due)) == ["equal", "less", "more"]


def test_importance_goes_before_work():
    due = [turn("a", 100, 0, priority=1), turn("b", 300, 1, priority=-1)]
    assert names(Turns(KNEE).ordered(due)) == ["b", "a"]


def test_the_first_come_is_not_passed_over_for_ever():
    turns = Turns(KNEE)
    due = [turn("first", 900, 0), turn("short", 100, 5), turn("urgent", 200, 9, -1)]
    first = []
    for _ in range(2 * MOST_PASSED_OVER + 2):
        ordered = turns.ordered(due[:2])
        first.append(ordered[0].request_id)
        run(turns, ordered)
    assert first == (["short"] * MOST_PASSED_OVER + ["first"]) * 2
    # It is so among the most important ones.
    for _ in range(2 * MOST_PASSED_OVER):
        ordered = turns.ordered(due)
        assert ordered[0].request_id == "urgent"
        run(turns, ordered)


def test_several_full_steps_in_an_iteration():
    """Those who came first have their share of each, in order."""
    turns = Turns(KNEE)
    due = [turn(name, 900, arrival) for arrival, name in enumerate("ABC")]
    due += [turn(name, 100, 5 + arrival) for arrival, name in enumerate("abcdefg")]
    order = names(turns.ordered(due))
    assert order == list("abAcdBefCg")
    # The next iteration goes on where the last one ended.
    run(turns, turns.ordered(due), width=5)
    left = [turn for turn in due if turn.request_id not in order[:5]]
    assert names(turns.ordered(left)) == list("BefCg")


def test_it_goes_first_until_it_runs():
    turns = Turns(KNEE)
    due = [turn("first", 900, 0), turn("short", 100, 5)]
    for _ in range(MOST_PASSED_OVER):
        run(turns, turns.ordered(due))
    for _ in range(3):
        assert names(turns.ordered(due)) == ["first", "short"]
        turns.count(turns.ordered(due), {"short": 100}, 0, False)


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(1, 5), st.integers(1, 20)),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 5),
)
def test_nobody_waits_for_those_who_come_later(
    requests: list[tuple[int, int, int]], width: int
):
    """Beside an endless stream of the shortest requests, and with ``width`` full steps
    in an iteration, a request waits for no more than three times the steps of those
    that were there before it."""
    turns = Turns(KNEE)
    requests.sort(key=lambda request: request[0])
    steps_left: dict[str, int] = {}
    arrivals: dict[str, int] = {}
    waits: Counter[str] = Counter()
    bounds: dict[str, int] = {}
    for iteration in range((MOST_PASSED_OVER + 1) * 5 * len(requests) + 40):
        for number, (comes, num_steps, _) in enumerate(requests):
            if comes == iteration:
                before = sum(steps_left[f"r{i}"] for i in range(number))
                steps_left[f"r{number}"] = num_steps
                arrivals[f"r{number}"] = 2 * number
                bounds[f"r{number}"] = (MOST_PASSED_OVER + 1) * (before + num_steps)
        due = [
            turn(name, left * requests[int(name[1:])][2], arrivals[name])
            for name, left in steps_left.items()
            if left
        ]
        last = 2 * len(requests) + width * iteration
        short = [turn(f"short{i}", 0, last + i) for i in range(width)]
        ordered = turns.ordered([*due, *short])
        run(turns, ordered, width=width)
        for name in names(ordered[:width]):
            if name in steps_left:
                steps_left[name] -= 1
        for waiting in due:
            waits[waiting.request_id] += 1
    assert not any(steps_left.values())
    assert all(waits[name] <= bound for name, bound in bounds.items())


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 40)), min_size=1))
def test_each_kind_has_half_of_the_machine(iterations: list[tuple[int, int]]):
    """Where cached steps fill the machine: between two full steps they have no more of
    it than those, and as much but for one iteration."""
    turns = Turns(KNEE)
    for full_rows, cached_rows in iterations:
        due = [turn("a", 500), turn("b", 500)]
        rows = max(cached_rows, KNEE)
        turns.count(due, {"a": full_rows}, rows, False)
        cost = 0
        while turns.are_held(due, rows, 0):
            turns.count([], {}, rows, False)
            cost += rows
            assert cost <= full_rows
        assert full_rows - rows < cost <= full_rows


def test_little_is_wasted():
    """Cached steps that do not fill the machine go on without full ones only where
    those are one exact request's."""
    turns = Turns(KNEE)
    exact = turn("exact", 500)
    first = turn("new", 500)._replace(is_exact=False)
    turns.count([exact], {"exact": 50}, 1, False)
    assert turns.are_held([exact], 1, 0)
    assert not turns.are_held([exact, exact], 1, 0)
    assert not turns.are_held([first], 1, 0)
    assert turns.are_held([exact, first], KNEE, 0)
    # They cost as much as if they did.
    for _ in range(5):
        assert turns.are_held([exact], 1, 0)
        turns.count([], {}, 1, False)
    assert not turns.are_held([exact], 1, 0)


def test_the_more_important_one_is_not_held():
    turns = Turns(KNEE)
    turns.count([turn("a", 500)], {"a": 50}, 0, False)
    assert turns.are_held([turn("a", 500, priority=1)], 30, 1)
    assert not turns.are_held([turn("a", 500, priority=0)], 30, 1)


def test_the_budget_goes_to_either_kind_in_turn():
    turns = Turns(KNEE)
    due = [turn("a", 500)]
    found = []
    for _ in range(4):
        found.append(turns.is_cached_first)
        turns.count(due, {} if turns.is_cached_first else {"a": 90}, 40, True)
    assert found == [False, True, False, True]
    turns.count(due, {"a": 90}, 40, False)
    assert not turns.is_cached_first
