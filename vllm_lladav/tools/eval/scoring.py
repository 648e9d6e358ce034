# SPDX-License-Identifier: Apache-2.0
"""Which answers are right, and how sure their share is. Pure functions."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

Z_95 = 1.959963984540054
"""Standard deviations that hold 95% of a normal distribution."""


def normalise(text: str) -> str:
    """The form in which answers are compared: in lower case, without a full stop at the
    end, and with single spaces between words only."""
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def is_same(text: str, other: str) -> bool:
    """Whether two answers are the same once both are normalised."""
    return normalise(text) == normalise(other)


@dataclass(frozen=True)
class Accuracy:
    """The number of right answers to at least one question."""

    num_right: int
    num_questions: int

    @property
    def value(self) -> float:
        """Share of right answers, 0 to 1."""
        return self.num_right / self.num_questions

    @property
    def interval(self) -> tuple[float, float]:
        """95% confidence interval of the share, (low, high): Wilson's score interval.

        It stays within 0 to 1, and has a width where all or no answers are right.
        """
        n, share = self.num_questions, self.value
        scale = 1 + Z_95**2 / n
        middle = (share + Z_95**2 / (2 * n)) / scale
        spread = share * (1 - share) / n + Z_95**2 / (4 * n * n)
        half_width = Z_95 * math.sqrt(spread) / scale
        # Rounding must not put the share itself outside.
        low, high = middle - half_width, middle + half_width
        return max(min(low, share), 0.0), min(max(high, share), 1.0)


def accuracy_by(groups: Iterable[str], right: Iterable[bool]) -> dict[str, Accuracy]:
    """Accuracy by the answers' groups, in order of their names; the group ``""`` is
    left out."""
    marks: dict[str, list[bool]] = {}
    for group, mark in zip(groups, right, strict=True):
        if group:
            marks.setdefault(group, []).append(mark)
    return {
        group: Accuracy(sum(found), len(found))
        for group, found in sorted(marks.items())
    }
