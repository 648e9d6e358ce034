# SPDX-License-Identifier: Apache-2.0
"""The torch stand-ins do what vLLM's Triton kernels do, row by row.

The loops below follow the kernels in ``vllm/v1/worker/gpu``: one program per
request, one element at a time. Buffers are longer than what is used, so that
writes beyond it are noticed.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_lladav.patches import cpu_kernels

MAX_REQS = 6
WIDTH = 12
UNTOUCHED = -77


@dataclass
class Batch:
    """Requests of a batch: the slot of each, and how many tokens it runs."""

    slots: list[int]
    query_lens: list[int]
    data: st.DataObject

    @property
    def num_reqs(self) -> int:
        return len(self.slots)

    @property
    def num_tokens(self) -> int:
        return sum(self.query_lens)

    @property
    def starts(self) -> list[int]:
        return [sum(self.query_lens[:i]) for i in range(self.num_reqs + 1)]

    @property
    def idx_mapping(self) -> torch.Tensor:
        return torch.tensor(self.slots, dtype=torch.int32)

    @property
    def query_start_loc(self) -> torch.Tensor:
        return torch.tensor(self.starts, dtype=torch.int32)

    def ints(self, low: int, high: int, *shape: int) -> torch.Tensor:
        """Random int32 numbers."""
        size = 1
        for side in shape:
            size *= side
        values = self.data.draw(
            st.lists(st.integers(low, high), min_size=size, max_size=size)
        )
        return torch.tensor(values, dtype=torch.int32).reshape(shape)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    slots = draw(st.permutations(range(MAX_REQS)))
    slots = slots[: draw(st.integers(1, MAX_REQS))]
    query_lens = [draw(st.integers(1, 5)) for _ in slots]
    return Batch(slots, query_lens, draw(st.data()))


def untouched(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.full(shape, UNTOUCHED, dtype=dtype)


@given(batches())
def test_prepare_pos_seq_lens(batch: Batch):
    computed = batch.ints(0, 9, MAX_REQS)
    pos, seq_lens = untouched(40, dtype=torch.int64), untouched(MAX_REQS)
    cpu_kernels.prepare_pos_seq_lens(
        pos,
        seq_lens,
        batch.idx_mapping,
        batch.query_start_loc,
        computed,
        MAX_REQS,
        BLOCK_SIZE=1024,
    )
    expected_pos, expected_lens = [UNTOUCHED] * 40, [0] * MAX_REQS
    for i, slot in enumerate(batch.slots):
        expected_lens[i] = int(computed[slot]) + batch.query_lens[i]
        for j in range(batch.query_lens[i]):
            expected_pos[batch.starts[i] + j] = int(computed[slot]) + j
    assert pos.tolist() == expected_pos
    assert seq_lens.tolist() == expected_lens


@given(batches(), st.integers(1, 3))
def test_prepare_prefill_inputs(batch: Batch, num_lookahead: int):
    tokens = batch.ints(0, 99, MAX_REQS, WIDTH)
    prefill_lens = batch.ints(1, WIDTH, MAX_REQS)
    computed = batch.ints(0, WIDTH, MAX_REQS)
    input_ids = untouched(40)
    ahead = untouched(num_lookahead, MAX_REQS)
    cpu_kernels.prepare_prefill_inputs(
        input_ids,
        ahead,
        ahead.stride(0),
        num_lookahead,
        batch.idx_mapping,
        batch.query_start_loc,
        tokens,
        tokens.stride(0),
        prefill_lens,
        computed,
        BLOCK_SIZE=1024,
        LOOKAHEAD_BLOCK=4,
    )
    expected_ids = [UNTOUCHED] * 40
    expected_ahead = [[UNTOUCHED] * MAX_REQS for _ in range(num_lookahead)]
    undefined = set()  # The kernel reads past the request's row there.
    for i, slot in enumerate(batch.slots):
        start, done = batch.starts[i], int(computed[slot])
        if done >= prefill_lens[slot]:
            continue
        for j in range(batch.query_lens[i]):
            if done + j < WIDTH:
                expected_ids[start + j] = int(tokens[slot, done + j])
            else:
                undefined.add(start + j)
        for j in range(num_lookahead):
            position = done + batch.query_lens[i] + j
            inside = position < prefill_lens[slot]
            expected_ahead[j][slot] = int(tokens[slot, position]) if inside else 0
    assert ahead.tolist() == expected_ahead
    actual = input_ids.tolist()
    for i in range(40):
        assert i in undefined or actual[i] == expected_ids[i]


@given(batches())
def test_combine_sampled_and_draft(batch: Batch):
    """Without drafts, which no request of ours has."""
    seq_lens = batch.ints(5, 20, batch.num_reqs)
    prefill_len = batch.ints(1, 20, MAX_REQS)
    sampled = batch.ints(100, 199, MAX_REQS, 1)
    drafts = untouched(MAX_REQS, 0)
    input_ids = untouched(40)
    indices = untouched(batch.num_reqs, dtype=torch.int64)
    cpu_kernels.combine_sampled_and_draft(
        input_ids,
        batch.idx_mapping,
        sampled,
        batch.query_start_loc,
        seq_lens,
        prefill_len,
        drafts,
        drafts.stride(0),
        torch.arange(batch.num_reqs + 1, dtype=torch.int32),
        indices,
        BLOCK_SIZE=1,
    )
    expected_ids = [UNTOUCHED] * 40
    for i, slot in enumerate(batch.slots):
        if seq_lens[i] > prefill_len[slot]:
            expected_ids[batch.starts[i + 1] - 1] = int(sampled[slot, 0])
    assert indices.tolist() == [end - 1 for end in batch.starts[1:]]
    assert input_ids.tolist() == expected_ids


@given(batches(), st.booleans())
def test_post_update(batch: Batch, has_query_lens: bool):
    for i in range(batch.num_reqs):
        if batch.data.draw(st.booleans()):
            batch.slots[i] = -1  # To be skipped.
    computed = batch.ints(0, 9, MAX_REQS)
    last = batch.ints(0, 9, MAX_REQS, 1)
    sampled = batch.ints(100, 199, batch.num_reqs, 4)
    num_sampled = batch.ints(0, 4, batch.num_reqs)
    num_rejected = batch.ints(0, 4, batch.num_reqs)
    all_tokens = untouched(MAX_REQS, WIDTH)
    total_len = batch.ints(0, WIDTH - 4, MAX_REQS)
    before = [t.tolist() for t in (computed, last, all_tokens, total_len)]
    cpu_kernels.post_update(
        batch.idx_mapping,
        computed,
        last,
        None,
        0,
        sampled,
        sampled.stride(0),
        num_sampled,
        num_rejected,
        batch.query_start_loc if has_query_lens else None,
        all_tokens,
        all_tokens.stride(0),
        total_len,
        num_warps=1,
    )
    expected_computed, expected_last, expected_all, expected_len = before
    for i, slot in enumerate(batch.slots):
        if slot < 0:
            continue
        query_len = batch.query_lens[i] if has_query_lens else 0
        expected_computed[slot] += query_len - int(num_rejected[i])
        for j in range(int(num_sampled[i])):
            expected_last[slot] = [int(sampled[i, j])]
            expected_all[slot][expected_len[slot] + j] = int(sampled[i, j])
        expected_len[slot] += int(num_sampled[i])
    assert computed.tolist() == expected_computed
    assert last.tolist() == expected_last
    assert all_tokens.tolist() == expected_all
    assert total_len.tolist() == expected_len


def test_post_update_refuses_penalties():
    with pytest.raises(AssertionError, match="penalties"):
        cpu_kernels.post_update(
            *[torch.zeros(1, dtype=torch.int32)] * 3,
            torch.zeros(1, 1),
            *[None] * 9,
            num_warps=1,
        )


@given(st.data(), st.booleans())
def test_apply_write(data: st.DataObject, one_dimensional: bool):
    """Writes of several rows, later ones over earlier ones; a vector has rows of
    one element."""
    width = 1 if one_dimensional else WIDTH
    writes = data.draw(
        st.lists(
            st.tuples(
                st.integers(0, MAX_REQS - 1),
                st.integers(0, width - 1),
                st.lists(st.integers(0, 99), min_size=1, max_size=width),
            ),
            min_size=1,
            max_size=8,
        )
    )
    writes = [(row, start, x[: width - start]) for row, start, x in writes]
    output = untouched(MAX_REQS) if one_dimensional else untouched(MAX_REQS, WIDTH)
    contents = [value for _, _, x in writes for value in x]
    lens = [len(x) for _, _, x in writes]
    cpu_kernels.apply_write(
        output,
        output.stride(0),
        torch.tensor([row for row, _, _ in writes], dtype=torch.int32),
        torch.tensor([start for _, start, _ in writes], dtype=torch.int32),
        torch.tensor(contents, dtype=torch.int32),
        torch.tensor([sum(lens[: i + 1]) for i in range(len(lens))]),
        torch.empty(0),
        BLOCK_SIZE=1024,
        MULTI_GROUP=False,
    )
    expected = [[UNTOUCHED] * width for _ in range(MAX_REQS)]
    for row, start, x in writes:
        expected[row][start : start + len(x)] = x
    assert output.reshape(MAX_REQS, width).tolist() == expected


def block_tables(batch: Batch, block_size: int) -> SimpleNamespace:
    """The attributes of vLLM's ``BlockTables`` that the two methods use."""
    return SimpleNamespace(
        block_sizes=[block_size],
        block_tables=[SimpleNamespace(gpu=batch.ints(0, 50, MAX_REQS, WIDTH))],
        num_blocks=SimpleNamespace(gpu=batch.ints(1, WIDTH, 1, MAX_REQS)),
        input_block_tables=[untouched(MAX_REQS, WIDTH)],
        slot_mappings=untouched(1, 40, dtype=torch.int64),
    )


@given(batches(), st.booleans())
def test_gather_block_tables(batch: Batch, has_out: bool):
    tables = block_tables(batch, block_size=4)
    padded = batch.data.draw(st.integers(batch.num_reqs, MAX_REQS))
    out = (untouched(MAX_REQS, WIDTH),) if has_out else None
    (gathered,) = cpu_kernels.gather_block_tables(
        tables, batch.idx_mapping, padded, out
    )
    expected = [[UNTOUCHED] * WIDTH for _ in range(batch.num_reqs)]
    expected += [[0] * WIDTH for _ in range(padded - batch.num_reqs)]
    for i, slot in enumerate(batch.slots):
        for j in range(int(tables.num_blocks.gpu[0, slot])):
            expected[i][j] = int(tables.block_tables[0].gpu[slot, j])
    assert gathered.tolist() == expected
    target = out[0] if out else tables.input_block_tables[0]
    assert gathered.data_ptr() == target.data_ptr()
    assert target[padded:].eq(UNTOUCHED).all()


@given(batches(), st.integers(1, 8), st.booleans())
def test_compute_slot_mappings(batch: Batch, block_size: int, has_out: bool):
    tables = block_tables(batch, block_size)
    computed = [batch.data.draw(st.integers(0, 3)) for _ in batch.slots]
    positions = [
        min(done + j, WIDTH * block_size - 1)
        for done, length in zip(computed, batch.query_lens, strict=True)
        for j in range(length)
    ]
    for i in range(batch.num_reqs):
        if batch.data.draw(st.booleans()):
            batch.slots[i] = -1  # A dummy request, which owns no blocks.
    padded = batch.num_tokens + batch.data.draw(st.integers(0, 5))
    out = untouched(1, 40, dtype=torch.int64) if has_out else None
    mapping = cpu_kernels.compute_slot_mappings(
        tables,
        batch.idx_mapping,
        batch.query_start_loc,
        torch.tensor(positions + [UNTOUCHED] * 9),
        padded,
        out,
    )
    expected = []
    for i, slot in enumerate(batch.slots):
        for position in positions[batch.starts[i] : batch.starts[i + 1]]:
            block = int(tables.block_tables[0].gpu[slot, position // block_size])
            inside = position % block_size
            expected.append(-1 if slot < 0 else block * block_size + inside)
    expected += [-1] * (padded - len(expected))
    assert mapping.tolist() == [expected]
    target = tables.slot_mappings if out is None else out
    assert mapping.data_ptr() == target.data_ptr()
