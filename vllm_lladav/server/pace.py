# SPDX-License-Identifier: Apache-2.0
"""How long a request would take that joins the queue now."""

from collections import deque

MOST, LEAST = 32, 8
"""Gaps between answers that are remembered, and those needed to tell anything."""


class Pace:
    """The time between two answers while the engine runs as many requests as it can.

    First come, first served: a request that has ``n`` before it is answered after
    ``n + 1`` of these times, whether it waits for them or runs beside them.
    """

    def __init__(self) -> None:
        self._gaps: deque[float] = deque(maxlen=MOST)
        self._last: float | None = None

    def note_answer(self, now: float, is_full: bool) -> None:
        """
        Args:
            now: in seconds.
            is_full: no request more could run when this one was answered. What passes
                until an answer tells nothing otherwise: nobody may have asked.
        """
        if is_full and self._last is not None:
            self._gaps.append(now - self._last)
        self._last = now if is_full else None

    def seconds(self, ahead: int) -> float | None:
        """Until a request is answered that has ``ahead`` before it; None where too
        little is known."""
        if len(self._gaps) < LEAST:
            return None
        return sum(self._gaps) / len(self._gaps) * (ahead + 1)
