# SPDX-License-Identifier: Apache-2.0
"""Every position of a sequence has the KV slot that attention will look for it in."""

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_lladav.denoising.plan import Span
from vllm_lladav.worker.attention import AttendedSequence, StepAttention

BLOCK = 4
WIDTH = 12


@st.composite
def batches(draw: st.DrawFn) -> list[AttendedSequence]:
    """Requests of one or two sequences, each computing a span of its positions."""
    sequences = []
    for row in range(draw(st.integers(1, 4))):
        length = draw(st.integers(1, BLOCK * WIDTH // 2))
        first = draw(st.integers(0, length - 1))
        span = Span(first, draw(st.integers(first + 1, length)))
        for number in range(draw(st.integers(1, 2))):
            first_kv_block = number * -(-length // BLOCK)
            sequences.append(AttendedSequence(row, first_kv_block, span, length))
    return sequences


@given(batches())
def test_slots_are_where_the_block_table_says(sequences: list[AttendedSequence]):
    table = torch.randperm(5 * WIDTH, dtype=torch.int32).view(5, WIDTH)
    built: dict[str, Any] = {}

    def build(**arguments: Any) -> dict[str, Any]:
        built.update(arguments)
        return {"layer": arguments}

    inputs = StepAttention(build, table, BLOCK).inputs(sequences)
    assert torch.equal(built["slot_mappings"][0], inputs.slot_mapping)
    (rows,) = built["block_tables"]
    starts = built["query_start_loc_cpu"].tolist()
    slots = inputs.slot_mapping.tolist()
    assert len(set(slots)) == len(slots) == built["num_tokens"] == starts[-1]
    assert built["num_reqs"] == len(sequences)
    assert built["seq_lens"].tolist() == [s.length for s in sequences]
    assert built["max_seq_len"] == max(s.length for s in sequences)
    is_plain = not any(s.first_kv_block for s in sequences)
    for number, sequence in enumerate(sequences):
        # Without twins the requests' own table serves, row by request.
        row = rows[sequence.row if is_plain else number].tolist()
        part = slots[starts[number] : starts[number + 1]]
        positions = range(*sequence.computed)
        assert part == [row[p // BLOCK] * BLOCK + p % BLOCK for p in positions]
    assert built["positions"].tolist() == [
        p for sequence in sequences for p in range(*sequence.computed)
    ]
