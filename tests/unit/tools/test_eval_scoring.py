# SPDX-License-Identifier: Apache-2.0
"""What counts as right, and how sure a share is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_lladav.tools.eval.scoring import (
    Accuracy,
    accuracy_by,
    is_same,
    normalise,
)


@pytest.mark.parametrize(
    "text, answer, expected",
    [
        ("Red", "red", True),
        (" a  red\nfive. ", "A red five", True),
        ("Straße", "STRASSE", True),
        ("red .", "red", True),
        ("red..", "red", False),
        ("red!", "red", False),
        ("reddish", "red", False),
        ("", "red", False),
    ],
)
def test_right(text, answer, expected):
    assert is_same(text, answer) is expected


@given(st.text(alphabet=st.sampled_from("aB .\n\tßİ")))
def test_what_does_not_matter(text):
    same = normalise(text)
    assert normalise(f"  {text}\n") == same
    assert normalise(text.replace(" ", " \t ")) == same
    assert not same.startswith(" ") and not same.endswith(" ") and "  " not in same


@pytest.mark.parametrize(
    "right, questions, low, high",
    # Published values of the score interval.
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilson(right, questions, low, high):
    assert Accuracy(right, questions).interval == pytest.approx((low, high), abs=5e-5)


@given(
    st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
)
def test_interval_holds_the_share(counts):
    right, questions = counts
    low, high = Accuracy(right, questions).interval
    assert 0 <= low <= right / questions <= high <= 1
    assert low < high
    # The other answers are the mirror image.
    other_low, other_high = Accuracy(questions - right, questions).interval
    assert (other_low, other_high) == pytest.approx((1 - high, 1 - low))


def test_groups():
    found = accuracy_by(["b", "a", "", "b"], [True, False, True, False])
    assert found == {"a": Accuracy(0, 1), "b": Accuracy(1, 2)}
    assert list(found) == ["a", "b"]
