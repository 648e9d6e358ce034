# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is: the order of full steps, and when cached ones run without them.

A full step with an image fills the machine: several at once take as long as one after
the other, but then all of them end last. So few requests at a time have full steps,
those first that need the least of them, which for equal requests is first come, first
served.

Nobody starves: where full steps of others have passed over the first come
:data:`MOST_PASSED_OVER` times in a row, be it in one iteration, the next one is its
own. So it ends sooner or later, and another one is the first come.

A full step takes as long as tens of cached ones. Iterations of cached steps only may
therefore come between two with full steps, until they have cost as much as the full
steps of the last one, so that each kind has half of the machine where both want it.
They may as long as that wastes little: cached steps that do not fill the machine cost
less beside a full one, for which others are waiting.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

MOST_PASSED_OVER = 2
"""Full steps in a row without one of the first come. So it has at least a third of
them, and those that need little still have the others."""


class Turn(NamedTuple):
    """A full step that is due. What goes first sorts first.

    Attributes:
        priority: of the request; the lower, the more important.
        rows_left: tokens of all full steps that it still needs.
        arrival: its number in the order of arrival.
        request_id: whose it is.
        is_exact: whether all its steps are full.
    """

    priority: int
    rows_left: int
    arrival: int
    request_id: str
    is_exact: bool


class Turns:
    """What the iterations so far mean for the next one.

    Args:
        knee: tokens from which on cached steps are worth an iteration of their own;
            one with fewer counts as one with so many.
    """

    def __init__(self, knee: int) -> None:
        self._knee = knee
        self._num_passed_over = 0
        self._full_rows = 0
        self._cached_cost = 0
        self._is_cached_first = False

    @property
    def is_cached_first(self) -> bool:
        """Whether cached steps have the token budget first, and not a full one. They
        take turns where it does not hold both."""
        return self._is_cached_first

    def ordered(self, due: Iterable[Turn]) -> list[Turn]:
        """Full steps in the order in which they run as far as there is room."""
        by_work = deque(sorted(due))
        by_arrival = _ByArrival(by_work, self._num_passed_over)
        num_due, ordered = len(by_work), list[Turn]()
        while len(ordered) < num_due:
            if by_arrival.num_passed_over >= MOST_PASSED_OVER:
                turn = by_arrival.first
            else:
                turn = by_work.popleft()
                if by_arrival.is_taken(turn):
                    continue
            by_arrival.take(turn)
            ordered.append(turn)
        return ordered

    def are_held(self, ordered: list[Turn], cached_rows: int, priority: int) -> bool:
        """Whether full steps wait while requests that are between theirs go on.

        Args:
            ordered: full steps that are due, at least one.
            cached_rows: tokens of the cached steps to come, be it that they cannot run
                in this very iteration.
            priority: of the most important one of these requests.
        """
        if ordered[0].priority < priority:
            return False
        is_alone = len(ordered) == 1 and ordered[0].is_exact
        if cached_rows < self._knee and not is_alone:
            return False
        return self._cached_cost + max(cached_rows, self._knee) <= self._full_rows

    def count(
        self,
        ordered: list[Turn],
        full_rows: Mapping[str, int],
        cached_rows: int,
        is_cached_left: bool,
    ) -> None:
        """An iteration is put together.

        Args:
            ordered: full steps that were due.
            full_rows: tokens of those that run, by request.
            cached_rows: tokens of cached steps that run.
            is_cached_left: whether there was no room for some cached step.
        """
        if full_rows:
            by_arrival = _ByArrival(ordered, self._num_passed_over)
            for turn in ordered:
                if turn.request_id in full_rows:
                    by_arrival.take(turn)
            self._num_passed_over = by_arrival.num_passed_over
            self._full_rows = sum(full_rows.values())
            self._cached_cost = 0
        elif cached_rows:
            self._cached_cost += max(cached_rows, self._knee)
        self._is_cached_first = is_cached_left and not self._is_cached_first


class _ByArrival:
    """Turns that are not taken yet, the first come of the most important ones first.

    Attributes:
        num_passed_over: turns in a row that were not those of the first come.
    """

    def __init__(self, turns: Iterable[Turn], num_passed_over: int) -> None:
        self.num_passed_over = num_passed_over
        self._turns = deque(
            sorted(turns, key=lambda turn: (turn.priority, turn.arrival))
        )
        self._taken: set[str] = set()

    @property
    def first(self) -> Turn:
        while self.is_taken(self._turns[0]):
            self._turns.popleft()
        return self._turns[0]

    def is_taken(self, turn: Turn) -> bool:
        return turn.request_id in self._taken

    def take(self, turn: Turn) -> None:
        is_first = turn is self.first
        self.num_passed_over = 0 if is_first else self.num_passed_over + 1
        self._taken.add(turn.request_id)
