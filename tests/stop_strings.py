# SPDX-License-Identifier: Apache-2.0
"""What stop strings leave of a text."""

from collections.abc import Sequence

from hypothesis import strategies as st


def cut_at(
    text: str, stops: Sequence[str], keeps_stop: bool = False
) -> tuple[str, str | None]:
    """``text`` up to the stop that is complete first, and that stop."""
    found = [
        (text.find(stop) + len(stop), number)
        for number, stop in enumerate(stops)
        if stop in text
    ]
    if not found:
        return text, None
    end, number = min(found)
    stop = stops[number]
    return text[: end if keeps_stop else end - len(stop)], stop


def stops_for(text: str) -> st.SearchStrategy[list[str]]:
    """Up to four stops: parts of ``text``, which begin and end anywhere in a token,
    parts that go on otherwise, and strings that may be anywhere."""
    start = st.integers(0, len(text) - 1)
    part = st.tuples(start, st.integers(1, 12)).map(
        lambda place: text[place[0] : place[0] + place[1]]
    )
    stop = part | part.map(lambda stop: stop + "?") | st.text(min_size=1, max_size=3)
    return st.lists(stop, min_size=1, max_size=4)
