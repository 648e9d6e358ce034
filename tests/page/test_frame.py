# SPDX-License-Identifier: Apache-2.0
"""Rows of numbers and what they mean."""

import math

import msgspec
import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_lladav.denoising.frame import (
    UNCHANGED,
    Frame,
    FrameHead,
    Unmasked,
    cells,
    words,
)
from vllm_lladav.denoising.plan import StepIndex

HEAD = FrameHead(
    place=3,
    is_running=1,
    step=4,
    block=1,
    step_in_block=2,
    stop=9,
    num_candidates=5,
    num_masks=7,
    num_final=2,
    is_last=0,
    gen_length=16,
    first_column=1,
    num_visual=6,
    num_columns=4,
)


def row_of(head: FrameHead = HEAD, kept: torch.Tensor | None = None) -> list[int]:
    tokens = torch.tensor([[9, 126_348, 0, 5]])
    confidence = torch.tensor([[0.5, 0.125, math.nan, -math.inf]], dtype=torch.float64)
    found = cells(tokens, confidence, torch.tensor([[False, True, True, True]]))
    ends = [] if kept is None else words(70, kept).tolist()
    return [*head, *found[0].tolist(), *ends]


def test_a_row_is_read():
    frame = Frame.of_row(row_of())
    assert frame == Frame(
        step_index=StepIndex(4, 1, 2, 9),
        num_candidates=5,
        num_masks=7,
        num_final=2,
        is_last=False,
        num_visual=6,
        unmasked=(
            Unmasked(0, 126_348, 0.125),
            # The model was sure of them by no number.
            Unmasked(1, 0, None),
            Unmasked(2, 5, None),
        ),
        kept=None,
    )


def test_of_a_request_that_had_ended():
    assert Frame.of_row(row_of(HEAD._replace(is_running=0))) is None


def test_without_a_stop():
    frame = Frame.of_row(row_of(HEAD._replace(stop=16)))
    assert frame is not None and frame.step_index.stop is None


@given(st.sets(st.integers(0, 69)))
def test_visual_tokens_that_are_left(kept: set[int]):
    """None at all included, and whatever stands behind them in a row of a batch."""
    row = row_of(kept=torch.tensor(sorted(kept), dtype=torch.int64))
    for padding in ([], [0, 0]):
        frame = Frame.of_row([*row, *padding])
        assert frame is not None and frame.kept == tuple(sorted(kept))


@given(
    st.lists(st.integers(0, 2**31 - 1), min_size=1),
    st.floats(0, 1, width=32),
)
def test_cells_keep_token_and_confidence(token_ids: list[int], confidence: float):
    tokens = torch.tensor([token_ids])
    every = torch.ones_like(tokens, dtype=torch.bool)
    found = cells(tokens, torch.full(tokens.shape, confidence), every)
    assert (found != UNCHANGED).all()
    head = HEAD._replace(num_columns=len(token_ids), first_column=0)
    frame = Frame.of_row([*head, *found[0].tolist()])
    assert frame is not None
    assert frame.unmasked == tuple(
        Unmasked(place, token_id, confidence)
        for place, token_id in enumerate(token_ids)
    )


def test_the_way_between_processes():
    frame = Frame.of_row(row_of(kept=torch.tensor([1, 5, 69])))
    assert frame is not None
    sent = msgspec.msgpack.encode(list(frame))
    assert Frame.from_values(msgspec.msgpack.decode(sent)) == frame
