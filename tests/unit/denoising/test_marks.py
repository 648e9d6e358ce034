# SPDX-License-Identifier: Apache-2.0
"""What a worker tells the scheduler survives between the answer tokens."""

from hypothesis import given
from hypothesis import strategies as st

from vllm_lladav.denoising.marks import (
    NOTHING,
    PruneReport,
    StepReport,
    block_mark,
    stop_mark,
)

COUNTS = st.integers(0, (1 << 26) - 1)

REPORTS = st.builds(
    StepReport,
    finish=st.none() | st.integers(-1000, -1),
    pruned=st.none() | st.builds(PruneReport, COUNTS, st.integers(0, (1 << 30) - 1)),
    block=st.none() | COUNTS,
    stop=st.none() | COUNTS,
)


@given(REPORTS, st.lists(st.integers(0, 1 << 20)), st.data())
def test_report_is_taken_off_the_tokens(report, tokens, data):
    marks = [NOTHING if report.finish is None else report.finish, NOTHING]
    if report.pruned is not None:
        marks += report.pruned.marks()
    if report.block is not None:
        marks.append(block_mark(report.block))
    if report.stop is not None:
        marks.append(stop_mark(report.stop))
    output = [*tokens, *data.draw(st.permutations(marks))]
    assert all(-(1 << 31) <= number < 1 << 31 for number in output)
    assert StepReport.take(output) == report
    assert output == tokens


def test_long_prune_points_are_cut_to_what_a_mark_can_say():
    marks = [*PruneReport(3, 1 << 40).marks()]
    assert StepReport.take(marks).pruned == PruneReport(3, (1 << 30) - 1)
