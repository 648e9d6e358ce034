# SPDX-License-Identifier: Apache-2.0
"""What a worker tells the scheduler beside answer tokens.

vLLM's step output carries token ids only; negative ids are free. A request's list
ends with the reports of its step: what was pruned, then how the request finished.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

_KEPT = -(1 << 28)
_MICROSECONDS = -(1 << 30)


@dataclass(frozen=True)
class PruneReport:
    """What was pruned of one request in one step.

    Attributes:
        num_visual: visual tokens that are left.
        microseconds: that its prune points took.
    """

    num_visual: int
    microseconds: int


@dataclass(frozen=True)
class StepReport:
    """What a step's token list says beside tokens.

    Attributes:
        finish: the :class:`FinishMark` of a request that is done (or what it
            makes of a stop string).
        pruned: None where nothing was pruned.
    """

    finish: int | None = None
    pruned: PruneReport | None = None

    @classmethod
    def take(cls, token_ids: list[int]) -> Self:
        """Take the report off the end of ``token_ids``."""
        finish = num_visual = microseconds = None
        while token_ids and token_ids[-1] < 0:
            mark = token_ids.pop()
            if mark <= _MICROSECONDS:
                microseconds = _MICROSECONDS - mark
            elif mark <= _KEPT:
                num_visual = _KEPT - mark
            else:
                finish = mark
        if num_visual is None or microseconds is None:
            return cls(finish)
        return cls(finish, PruneReport(num_visual, microseconds))


def with_prune_report(output: Sequence[int], report: PruneReport) -> list[int]:
    """``output`` with the report between its tokens and its finish mark, if any."""
    is_finished = bool(output) and output[-1] < 0
    tokens, finish = (output[:-1], output[-1:]) if is_finished else (output, ())
    microseconds = min(report.microseconds, (1 << 30) - 1)
    marks = (_KEPT - report.num_visual, _MICROSECONDS - microseconds)
    return [*tokens, *marks, *finish]
