# SPDX-License-Identifier: Apache-2.0
"""What a worker tells the scheduler beside answer tokens.

vLLM's step output carries token ids only; negative ids are free. A request's list
ends with the report of its step, in marks of any order: how the request finished, which
block comes next, where the answer stops, what was pruned.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Self

NOTHING = -(1 << 31)
"""A mark without a meaning: keeps a place."""

_BLOCK = -(1 << 26)
_STOP = -(1 << 27)
_KEPT = -(1 << 28)
_MICROSECONDS = -(1 << 30)


class FinishMark(IntEnum):
    """Closes a finished request's token list on its way to the scheduler.

    A stop string is marked with ``STOP_STRING - index`` of the string in the
    request. ``NOT_FINITE`` is an error: the model's numbers are none.
    """

    LENGTH = -1
    END_TOKEN = -2
    STOP_STRING = -3
    NOT_FINITE = -(1 << 25)


def block_mark(block: Any) -> Any:
    """Of a block, or of a tensor of them."""
    return _BLOCK - block


def stop_mark(stop: Any) -> Any:
    """Of a stop's offset, or of a tensor of them."""
    return _STOP - stop


@dataclass(frozen=True)
class PruneReport:
    """What was pruned of one request in one step.

    Attributes:
        num_visual: visual tokens that are left.
        microseconds: that its prune points took.
    """

    num_visual: int
    microseconds: int

    def marks(self) -> tuple[int, int]:
        microseconds = min(self.microseconds, (1 << 30) - 1)
        return _KEPT - self.num_visual, _MICROSECONDS - microseconds


@dataclass(frozen=True)
class StepReport:
    """What a step's token list says beside tokens.

    Attributes:
        finish: the :class:`FinishMark` of a request that is done (or what it
            makes of a stop string).
        pruned: None where nothing was pruned.
        block: of the canvas that the next step works on; None if it does not matter.
        stop: canvas position at which the answer ends; None if there is no stop yet,
            or if it does not matter.
    """

    finish: int | None = None
    pruned: PruneReport | None = None
    block: int | None = None
    stop: int | None = None

    @classmethod
    def take(cls, token_ids: list[int]) -> Self:
        """Take the report off the end of ``token_ids``."""
        finish = num_visual = microseconds = block = stop = None
        while token_ids and token_ids[-1] < 0:
            mark = token_ids.pop()
            if mark == NOTHING:
                continue
            if mark <= _MICROSECONDS:
                microseconds = _MICROSECONDS - mark
            elif mark <= _KEPT:
                num_visual = _KEPT - mark
            elif mark <= _STOP:
                stop = _STOP - mark
            elif mark <= _BLOCK:
                block = _BLOCK - mark
            else:
                finish = mark
        if num_visual is None or microseconds is None:
            return cls(finish, None, block, stop)
        return cls(finish, PruneReport(num_visual, microseconds), block, stop)
