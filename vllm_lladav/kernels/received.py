# SPDX-License-Identifier: Apache-2.0
"""Attention that some tokens receive, without attention weights in memory.

The twin is ``attention_received`` of ``pruning/scores.py``, which writes and reads the
weights of every row a few times, in float32.

A weight needs the sum of its row. The first kernel goes over all keys for these sums,
as FlashAttention does, and keeps their logarithms: ``[heads, rows]``. The second has
some columns at hand and adds up their weights over rows; what heads receive is added up
last. Every sum is one program's, in one order, so that scores are the same each time.
"""

import math
from typing import NamedTuple

import torch
from vllm.triton_utils import tl, triton


class Tiles(NamedTuple):
    """What a program has at hand.

    Attributes:
        own: rows, or columns, that it sums up.
        passing: columns, or rows, that it goes over at a time.
        num_warps: of Triton's launch, as ``num_stages``.
        num_stages: tiles that pass, on their way from memory while another is computed
            with.
    """

    own: int
    passing: int
    num_warps: int
    num_stages: int


NARROW_TILES = Tiles(own=128, passing=64, num_warps=8, num_stages=3)
"""For tensor cores: bfloat16 and float16."""

FLOAT32_TILES = Tiles(own=32, passing=32, num_warps=4, num_stages=2)
"""Products without tensor cores, which would round to TF32. Larger tiles do not fit
into registers."""


def attention_received(
    query: torch.Tensor, key: torch.Tensor, scale: float, columns: torch.Tensor
) -> torch.Tensor:
    """As the twin. The host does not wait for the device.

    Args:
        query: ``[rows, heads, head_dim]``, float32 or narrower.
        key: ``[n, kv_heads, head_dim]``, of the same dtype.
        scale: of the products, before the softmax.
        columns: ``[m]``, int64.

    Returns:
        ``[m]``, float32.
    """
    num_rows, num_heads, head_dim = query.shape
    num_keys, num_kv_heads, _ = key.shape
    # Heads side by side, as layers have them; rows may be those of a wider buffer.
    query, key = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key))
    tiles = FLOAT32_TILES if query.dtype == torch.float32 else NARROW_TILES
    sizes = {
        "GROUP": num_heads // num_kv_heads,
        "HEAD_DIM": head_dim,
        "WIDTH": max(16, triton.next_power_of_2(head_dim)),
        "OWN": tiles.own,
        "PASSING": tiles.passing,
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
    }
    inputs = (query, *query.stride()[:2], key, *key.stride()[:2])
    # Powers of two are the device's own.
    scale *= math.log2(math.e)
    sums = query.new_empty(num_heads, num_rows, dtype=torch.float32)
    _row_sums_kernel[(triton.cdiv(num_rows, tiles.own), num_heads)](
        *inputs, scale, num_rows, num_keys, sums, **sizes
    )
    received = query.new_empty(num_heads, len(columns), dtype=torch.float32)
    if len(columns):
        _column_sums_kernel[(triton.cdiv(len(columns), tiles.own), num_heads)](
            *inputs, scale, num_rows, sums, columns, len(columns), received, **sizes
        )
    return received.sum(dim=0) / num_rows


@triton.jit
def _block(pointer, rows, stride, is_row, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr):
    """``[rows, WIDTH]`` of one head; 0 where there is nothing."""
    dims = tl.arange(0, WIDTH)
    return tl.load(
        pointer + rows.to(tl.int64)[:, None] * stride + dims[None, :],
        mask=is_row[:, None] & (dims < HEAD_DIM)[None, :],
        other=0.0,
    )


# Numbers of tokens differ from request to request: one binary for all of them.
@triton.jit(do_not_specialize=["num_rows", "num_keys"])
def _row_sums_kernel(
    query_ptr,
    query_stride,
    query_head_stride,
    key_ptr,
    key_stride,
    key_head_stride,
    scale,
    num_rows,
    num_keys,
    sums_ptr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    OWN: tl.constexpr,
    PASSING: tl.constexpr,
):
    """Logarithms, to base 2, of the sums of every row's exponentials."""
    head = tl.program_id(1)
    query_ptr += head.to(tl.int64) * query_head_stride
    key_ptr += (head // GROUP).to(tl.int64) * key_head_stride
    rows = tl.program_id(0) * OWN + tl.arange(0, OWN)
    query = _block(query_ptr, rows, query_stride, rows < num_rows, HEAD_DIM, WIDTH)
    largest = tl.full((OWN,), float("-inf"), tl.float32)
    total = tl.zeros((OWN,), tl.float32)
    for start in range(0, num_keys, PASSING):
        keys = start + tl.arange(0, PASSING)
        key = _block(key_ptr, keys, key_stride, keys < num_keys, HEAD_DIM, WIDTH)
        # Not in TF32, which is narrower than float32.
        logits = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        logits = tl.where((keys < num_keys)[None, :], logits, float("-inf"))
        above = tl.maximum(largest, tl.max(logits, 1))
        total *= tl.exp2(largest - above)
        total += tl.sum(tl.exp2(logits - above[:, None]), 1)
        largest = above
    sums = largest + tl.log2(total)
    tl.store(sums_ptr + head * num_rows + rows, sums, mask=rows < num_rows)


@triton.jit(do_not_specialize=["num_rows", "num_columns"])
def _column_sums_kernel(
    query_ptr,
    query_stride,
    query_head_stride,
    key_ptr,
    key_stride,
    key_head_stride,
    scale,
    num_rows,
    sums_ptr,
    columns_ptr,
    num_columns,
    received_ptr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    OWN: tl.constexpr,
    PASSING: tl.constexpr,
):
    """Weights of one head, added up over rows."""
    head = tl.program_id(1)
    query_ptr += head.to(tl.int64) * query_head_stride
    key_ptr += (head // GROUP).to(tl.int64) * key_head_stride
    places = tl.program_id(0) * OWN + tl.arange(0, OWN)
    is_place = places < num_columns
    columns = tl.load(columns_ptr + places, mask=is_place, other=0)
    key = _block(key_ptr, columns, key_stride, is_place, HEAD_DIM, WIDTH)
    received = tl.zeros((OWN,), tl.float32)
    for start in range(0, num_rows, PASSING):
        rows = start + tl.arange(0, PASSING)
        query = _block(query_ptr, rows, query_stride, rows < num_rows, HEAD_DIM, WIDTH)
        # A row that is none has no weights.
        sums = tl.load(
            sums_ptr + head * num_rows + rows, mask=rows < num_rows, other=float("inf")
        )
        # Columns first: a sum over rows is then one of a thread or of its neighbours.
        logits = tl.dot(key, tl.trans(query), input_precision="ieee") * scale
        received += tl.sum(tl.exp2(logits - sums[None, :]), 1)
    tl.store(received_ptr + head * num_columns + places, received, mask=is_place)
