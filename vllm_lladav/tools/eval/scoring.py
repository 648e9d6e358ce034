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


def is_right(text: str, answer: str) -> bool:
    """Whether ``text`` is the right ``answer`` once both are normalised."""
    return normalise(text) == normalise(answer)


def wilson_interval(num_right: int, num_questions: int) -> tuple[float, float]:
    """95% confidence interval of a share (Wilson's score interval).

    It stays within 0 to 1, and has a width where all or no answers are right.
    """
    assert 0 <= num_right <= num_questions and num_questions > 0
    n, share = num_questions, num_right / num_questions
    scale = 1 + Z_95**2 / n
    middle = (share + Z_95**2 / (2 * n)) / scale
    spread = share * (1 - share) / n + Z_95**2 / (4 * n * n)
    half_width = Z_95 * math.sqrt(spread) / scale
    # Rounding must not put the share itself outside.
    low, high = middle - half_width, middle + half_width
    return max(min(low, share), 0.0), min(max(high, share), 1.0)


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
        """95% confidence interval of the share, (low, high)."""
        return wilson_interval(self.num_right, self.num_questions)


def accuracy(right: Iterable[bool]) -> Accuracy:
    """Count which of at least one answer are right."""
    marks = list(right)
    return Accuracy(sum(marks), len(marks))


def accuracy_by(groups: Iterable[str], right: Iterable[bool]) -> dict[str, Accuracy]:
    """Accuracy per group, in order of their names; the group ``""`` is left out.

    Args:
        groups: each answer's group.
        right: whether each answer is right.
    """
    marks: dict[str, list[bool]] = {}
    for group, mark in zip(groups, right, strict=True):
        if group:
            marks.setdefault(group, []).append(mark)
    return {group: accuracy(marks[group]) for group in sorted(marks)}
