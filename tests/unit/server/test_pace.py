# SPDX-License-Identifier: Apache-2.0
"""What a queue's pace tells."""

import pytest

from vllm_lladav.server.pace import LEAST, MOST, Pace


def test_knows_nothing_at_first():
    pace = Pace()
    for second in range(LEAST):  # A gap fewer.
        pace.note_answer(second, is_full=True)
    assert pace.seconds(5) is None
    pace.note_answer(LEAST, is_full=True)
    assert pace.seconds(5) == 6


def test_idle_times_do_not_count():
    """Neither the time to an answer that came while there was room, nor after it."""
    pace = Pace()
    for second in range(LEAST + 1):
        pace.note_answer(second, is_full=True)
    pace.note_answer(1000, is_full=False)
    pace.note_answer(2000, is_full=True)
    assert pace.seconds(0) == 1
    pace.note_answer(2001, is_full=True)
    assert pace.seconds(0) == 1


def test_answers_of_the_same_step_and_recent_times():
    """Answers come in bunches; what was long ago is forgotten."""
    pace = Pace()
    for second in range(100):
        pace.note_answer(10.0 * second, is_full=True)
    for step in range(MOST):
        for _ in range(4):
            pace.note_answer(10_000 + step, is_full=True)
    assert pace.seconds(3) == pytest.approx(1, rel=0.1)
