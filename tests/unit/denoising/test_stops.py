# SPDX-License-Identifier: Apache-2.0
"""Stop sequences of a batch against ``str.find``."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_lladav.denoising.marks import FinishMark
from vllm_lladav.denoising.stops import StopSequences
from vllm_lladav.denoising.unmasking import UNSET

CPU = torch.device("cpu")
TOKENS = st.integers(0, 2)
SEQUENCES = st.lists(st.lists(TOKENS, min_size=1, max_size=5), max_size=3)


def text_of(tokens: list[int]) -> str:
    return "".join(map(str, tokens))


@given(
    st.lists(
        st.tuples(st.lists(TOKENS, min_size=1, max_size=12), SEQUENCES, st.booleans()),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 3),
)
def test_first_sequence_that_counts(requests, num_before: int):
    """Where each begins in the canvas only: columns before and behind it have tokens
    too. In their order, no further than the first that is there, and the first of all
    only, once any was found."""
    stops = StopSequences.of([sequences for _, sequences, _ in requests], CPU)
    asked = [request for request in requests if request[1]]
    if stops is None:
        assert not asked
        return
    assert stops.rows.tolist() == [i for i, r in enumerate(requests) if r[1]]
    width = num_before + 3 + max(len(tokens) for tokens, _, _ in asked)
    rows = [([1] * num_before + tokens + [1] * width)[:width] for tokens, _, _ in asked]
    offsets = torch.arange(width)[None] - num_before
    lengths = torch.tensor([len(tokens) for tokens, _, _ in asked])
    starts = stops.find(torch.tensor(rows), offsets, lengths)
    was_found = torch.tensor([found for _, _, found in asked])
    first, marks = stops.first_found(starts, was_found)
    for row, (tokens, sequences, found) in enumerate(asked):
        expected = [text_of(tokens).find(text_of(s)) for s in sequences]
        actual = starts[row, : len(sequences)].tolist()
        assert actual == [UNSET if e < 0 else e for e in expected]
        assert all(s == UNSET for s in starts[row, len(sequences) :].tolist())
        looked_at = expected[:1] if found else expected
        there = [index for index, e in enumerate(looked_at) if e >= 0]
        if not there:
            assert first[row] == UNSET
            continue
        assert first[row] == expected[there[0]]
        assert marks[row] == FinishMark.STOP_STRING - there[0]


def test_sequence_longer_than_all_canvases():
    stops = StopSequences.of([[[1] * 9]], CPU)
    assert stops is not None
    offsets = torch.arange(4)[None]
    starts = stops.find(torch.ones(1, 4).long(), offsets, torch.tensor([4]))
    assert starts.tolist() == [[UNSET]]


@pytest.mark.parametrize("length", [1, 2, 500, 1024])
def test_long_sequences(length: int):
    """Found at their place, and not where one token is another."""
    tokens = torch.randint(0, 126_000, (1, 1500), generator=torch.manual_seed(length))
    sequence = tokens[0, 200 : 200 + length].tolist()
    wrong = [*sequence[:-1], sequence[-1] + 1]
    stops = StopSequences.of([[sequence, wrong]], CPU)
    assert stops is not None
    starts = stops.find(tokens, torch.arange(1500)[None], torch.tensor([1500]))
    assert starts.tolist() == [[200, UNSET]]
