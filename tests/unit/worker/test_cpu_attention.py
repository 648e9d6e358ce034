# SPDX-License-Identifier: Apache-2.0
"""Attention on CPUs against plain softmax attention over each sequence."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.platforms import current_platform
from vllm.v1.attention.backend import CommonAttentionMetadata

if not current_platform.is_cpu():
    pytest.skip("for vLLM's CPU build", allow_module_level=True)

from vllm_lladav.worker.cpu_attention import (
    SplitAttentionImpl,
    SplitAttentionMetadata,
    SplitAttentionMetadataBuilder,
)

HEADS, HEAD_DIM, BLOCK = 2, 32, 32
ISA = "vec"

# Tokens of a sequence, and the first one that the step computes.
sequences = st.lists(
    st.integers(1, 90).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1))),
    min_size=1,
    max_size=6,
)


def builder() -> SplitAttentionMetadataBuilder:
    """As vLLM constructs it, without an engine."""
    made = object.__new__(SplitAttentionMetadataBuilder)
    for name, value in {
        "num_heads": HEADS,
        "num_kv_heads": HEADS,
        "head_dim": HEAD_DIM,
        "dtype": torch.float32,
        "window_size": -1,
        "block_size": BLOCK,
        "kv_cache_dtype": "auto",
        "isa": ISA,
        "is_cross_attention": False,
        "is_encoder_only_attention": False,
    }.items():
        setattr(made, name, value)
    return made


def implementation() -> SplitAttentionImpl:
    made = object.__new__(SplitAttentionImpl)
    for name, value in {
        "scale": HEAD_DIM**-0.5,
        "num_heads": HEADS,
        "num_kv_heads": HEADS,
        "alibi_slopes": None,
        "sliding_window": -1,
        "logits_soft_cap": 0,
        "attn_type": "decoder",
        "sinks": None,
        "kv_cache_dtype": "auto",
        "use_zentorch_sdpa": False,
    }.items():
        setattr(made, name, value)
    return made


def expected(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """``[n, heads, head_dim]`` each."""
    scores = torch.einsum("qhd,khd->hqk", query, key) * HEAD_DIM**-0.5
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)


@given(sequences, st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_every_row_attends_to_its_whole_sequence(
    shapes: list[tuple[int, int]], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(rows: int) -> torch.Tensor:
        return torch.randn(rows, HEADS, HEAD_DIM, generator=generator)

    lengths = [length for length, _ in shapes]
    firsts = [first for _, first in shapes]
    keys, values = [draw(n) for n in lengths], [draw(n) for n in lengths]
    queries = [draw(n - first) for n, first in shapes]
    width = -(-max(lengths) // BLOCK)
    table = 1 + torch.randperm(len(shapes) * width, generator=generator).int()
    table = table.view(len(shapes), width)
    cache = torch.zeros(len(shapes) * width + 1, HEADS, BLOCK, 2 * HEAD_DIM)
    slots = [
        (row[torch.arange(n) // BLOCK] * BLOCK + torch.arange(n) % BLOCK).long()
        for row, n in zip(table, lengths, strict=True)
    ]
    layer = SimpleNamespace(isa=ISA, _k_scale_float=1.0, _v_scale_float=1.0)
    impl = implementation()
    impl.do_kv_cache_update(
        layer, torch.cat(keys), torch.cat(values), cache, torch.cat(slots)
    )
    query = torch.cat(queries)
    starts = torch.tensor([0, *map(len, queries)]).cumsum(0).int()
    metadata = builder().build(
        0,
        CommonAttentionMetadata(
            query_start_loc=starts,
            query_start_loc_cpu=starts,
            seq_lens=torch.tensor(lengths, dtype=torch.int32),
            num_reqs=len(shapes),
            num_actual_tokens=len(query),
            max_query_len=max(map(len, queries)),
            max_seq_len=max(lengths),
            block_table_tensor=table,
            slot_mapping=torch.cat(
                [s[first:] for s, first in zip(slots, firsts, strict=True)]
            ),
            causal=False,
        ),
    )
    assert isinstance(metadata, SplitAttentionMetadata) == (0 in firsts)
    output = impl.forward(
        layer,
        query,
        torch.cat([k[first:] for k, first in zip(keys, firsts, strict=True)]),
        torch.cat([v[first:] for v, first in zip(values, firsts, strict=True)]),
        cache,
        metadata,
        torch.full_like(query, torch.nan),
    )
    wanted = [expected(*qkv) for qkv in zip(queries, keys, values, strict=True)]
    torch.testing.assert_close(output, torch.cat(wanted), rtol=1e-4, atol=1e-5)
