# SPDX-License-Identifier: Apache-2.0
"""Attention on CPUs. Without AVX512, what a step computes whole does not go through the
KV blocks.

In a full step all keys and values of a sequence are at hand, and torch's fused
attention reads them as they are. vLLM's kernel for CPUs reads them back from the KV
blocks, at about half the speed with AVX2; with AVX512 it is the faster one (1.3 times
in float32, 1.2 times in bfloat16, on sequences of 160 to 3,000 tokens). Sequences of
which a step computes a part are always attended to by that kernel.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import (
    CPUAttentionBackend,
    CPUAttentionBackendImpl,
    CPUAttentionMetadata,
    CPUAttentionMetadataBuilder,
)


@dataclass(frozen=True)
class WholeSequences:
    """Neighbours in a batch, of one length, that attend to themselves only.

    Attributes:
        rows: of the batch.
        count: sequences.
    """

    rows: slice
    count: int


@dataclass
class SplitAttentionMetadata(CPUAttentionMetadata):
    """vLLM's, for the sequences that are read from the KV blocks.

    Attributes:
        whole: the other sequences.
        paged_rows: ``[n]``, int64: rows of those from the KV blocks; None if that
            is all of the batch.
    """

    whole: tuple[WholeSequences, ...] = ()
    paged_rows: torch.Tensor | None = None


class SplitAttentionBackend(CPUAttentionBackend):
    @staticmethod
    def get_impl_cls() -> type["SplitAttentionImpl"]:
        return SplitAttentionImpl

    @staticmethod
    def get_builder_cls() -> type["SplitAttentionMetadataBuilder"]:
        return SplitAttentionMetadataBuilder


class SplitAttentionMetadataBuilder(CPUAttentionMetadataBuilder):
    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> CPUAttentionMetadata:
        common = common_attn_metadata
        bounds = common.query_start_loc[: common.num_reqs + 1].tolist()
        rows = list(itertools.pairwise(bounds))
        lengths = common.seq_lens[: common.num_reqs].tolist()
        is_whole = [
            end - start == length
            for (start, end), length in zip(rows, lengths, strict=True)
        ]
        if common.causal is not False or not any(is_whole):
            return super().build(common_prefix_len, common, fast_build)
        whole = tuple(_whole_sequences(rows, is_whole))
        paged = torch.tensor([not flag for flag in is_whole])
        if not paged.any():
            return SplitAttentionMetadata(
                num_actual_tokens=common.num_actual_tokens,
                max_query_len=common.max_query_len,
                query_start_loc=common.query_start_loc,
                max_seq_len=common.max_seq_len,
                seq_lens=common.seq_lens,
                block_table=common.block_table_tensor,
                slot_mapping=common.slot_mapping,
                scheduler_metadata=None,
                causal=False,
                whole=whole,
                paged_rows=torch.empty(0, dtype=torch.int64),
            )
        paged_rows = torch.cat(
            [
                torch.arange(start, end)
                for (start, end), flag in zip(rows, is_whole, strict=True)
                if not flag
            ]
        )
        rest = _only(common, paged, paged_rows)
        built = super().build(common_prefix_len, rest, fast_build)
        return SplitAttentionMetadata(**vars(built), whole=whole, paged_rows=paged_rows)


class SplitAttentionImpl(CPUAttentionBackendImpl):
    def forward(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: CPUAttentionMetadata | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As in the base class: ``[num_tokens, heads, head_size]`` each."""
        if not isinstance(attn_metadata, SplitAttentionMetadata):
            return super().forward(
                layer, query, key, value, kv_cache, attn_metadata, output
            )
        for part in attn_metadata.whole:
            attended = functional.scaled_dot_product_attention(
                _sequences(query, part),
                _sequences(key, part),
                _sequences(value, part),
                scale=self.scale,
                enable_gqa=self.num_kv_heads != self.num_heads,
            )
            _sequences(output, part).copy_(attended)
        rows = attn_metadata.paged_rows
        assert rows is not None
        if len(rows):
            paged = torch.empty_like(output[: len(rows)])
            super().forward(
                layer, query[rows], key, value, kv_cache, attn_metadata, paged
            )
            output[rows] = paged
        return output


def is_torch_faster() -> bool:
    """Than vLLM's kernel, in full steps on this CPU."""
    return not torch.cpu._is_avx512_supported()


def attend_split(attentions: Iterable[Attention]) -> None:
    """Let layers that vLLM has built for a CPU attend as above."""
    for attention in attentions:
        impl = attention.impl
        assert type(impl) is CPUAttentionBackendImpl, type(impl)
        attention.attn_backend = SplitAttentionBackend
        # Nothing but forward differs.
        impl.__class__ = SplitAttentionImpl


def clear_blocks(attentions: Iterable[Attention], blocks: torch.Tensor) -> None:
    """Zero KV blocks (``[n]``, int64) of all layers, for a request that is new to them.

    vLLM's kernel weights what lies behind the end of a sequence, in its last block,
    with zero. Numbers that another request has left there, and that are not finite,
    would stay so.
    """
    for attention in attentions:
        attention.kv_cache.index_fill_(0, blocks, 0)


def _whole_sequences(
    rows: Sequence[tuple[int, int]], is_whole: Sequence[bool]
) -> list[WholeSequences]:
    """Neighbours of one length together. ``rows``: (first, end) of each sequence."""

    def kind(sequence: tuple[tuple[int, int], bool]) -> tuple[bool, int]:
        (start, end), flag = sequence
        return flag, end - start

    found = []
    for (flag, _), group in itertools.groupby(zip(rows, is_whole, strict=True), kind):
        same = [bounds for bounds, _ in group]
        if flag:
            found.append(WholeSequences(slice(same[0][0], same[-1][1]), len(same)))
    return found


def _sequences(x: torch.Tensor, part: WholeSequences) -> torch.Tensor:
    """``[num_tokens, heads, head_size]`` -> ``[count, heads, n, head_size]``."""
    return x[part.rows].unflatten(0, (part.count, -1)).transpose(1, 2)


def _only(
    common: CommonAttentionMetadata, sequences: torch.Tensor, rows: torch.Tensor
) -> CommonAttentionMetadata:
    """The batch without the other sequences. ``sequences``: ``[num_reqs]``, bool."""
    count = len(sequences)
    lengths = common.query_start_loc[: count + 1].diff()[sequences]
    starts = torch.zeros(len(lengths) + 1, dtype=torch.int32)
    torch.cumsum(lengths, 0, out=starts[1:])
    seq_lens = common.seq_lens[:count][sequences]
    return replace(
        common,
        query_start_loc=starts,
        query_start_loc_cpu=starts,
        seq_lens=seq_lens,
        num_reqs=len(lengths),
        num_actual_tokens=len(rows),
        max_query_len=int(lengths.max()),
        max_seq_len=int(seq_lens.max()),
        block_table_tensor=common.block_table_tensor[:count][sequences],
        slot_mapping=common.slot_mapping[rows],
        seq_lens_cpu_upper_bound=seq_lens,
        positions=None,
    )
