# SPDX-License-Identifier: Apache-2.0
"""Which answers are right, and how sure their share is. Pure functions."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

Z_95 = 1.959963984540054
"""Standard deviations that hold 95% of a normal distribution."""


def normalise(text: str) -> str:
    """What answers are compared by: case, outer and repeated white space, and a full
    stop at the end do not matter."""
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def is_right(text: str, answer: str) -> bool:
    """Whether they are the same once both are normalised."""
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
    """Right answers among those to some questions, at least one."""

    num_right: int
    num_questions: int

    @property
    def value(self) -> float:
        """The share, 0 to 1."""
        return self.num_right / self.num_questions

    @property
    def interval(self) -> tuple[float, float]:
        """Of 95%."""
        return wilson_interval(self.num_right, self.num_questions)


def accuracy(right: Iterable[bool]) -> Accuracy:
    """Of at least one answer."""
    marks = list(right)
    return Accuracy(sum(marks), len(marks))


def accuracy_by(groups: Iterable[str], right: Iterable[bool]) -> dict[str, Accuracy]:
    """Per group, in order of their names; answers of the group ``""`` do not count."""
    marks: dict[str, list[bool]] = {}
    for group, mark in zip(groups, right, strict=True):
        if group:
            marks.setdefault(group, []).append(mark)
    return {group: accuracy(marks[group]) for group in sorted(marks)}
