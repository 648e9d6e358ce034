# SPDX-License-Identifier: Apache-2.0
"""Tiled scores against the plain ones."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_lladav.pruning import scores


def heads(seed: int, length: int, num_heads: int) -> torch.Tensor:
    """Queries or keys: ``[length, num_heads, 8]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(length, num_heads, 8, generator=generator) * 2


SHAPES = (st.integers(0, 2**32), st.integers(2, 70), st.integers(1, 3))


@settings(deadline=None)
@given(*SHAPES, st.integers(1, 3), st.sampled_from([1, 3000, 1 << 20]))
def test_attention_received(
    seed: int, length: int, kv_heads: int, group: int, tile_bytes: int
):
    """Softmax weights of [heads, rows, n], made at once, in float64."""
    key = heads(seed, length, kv_heads)
    query = heads(seed + 1, max(1, length // 3), kv_heads * group)
    columns = torch.arange(0, length, 2)
    repeated = key.repeat_interleave(group, dim=1).double()
    weights = torch.einsum("qhd,khd->hqk", query.double(), repeated)
    weights = weights.mul(0.3).softmax(-1)
    with patch.object(scores, "TILE_BYTES", tile_bytes):
        received = scores.attention_received(query, key, 0.3, columns)
    assert received.dtype == torch.float32
    expected = weights.mean(dim=1).sum(dim=0)[columns]
    torch.testing.assert_close(received.double(), expected, rtol=1e-4, atol=1e-6)


def test_weights_of_a_row_add_up_to_one_per_head():
    query, key = heads(0, 50, 4), heads(1, 50, 2)
    received = scores.attention_received(query, key, 1.0, torch.arange(50))
    assert received.sum().item() == pytest.approx(4.0, rel=1e-5)


@settings(deadline=None)
@given(*SHAPES, st.sampled_from([1, 3000, 1 << 20]))
def test_redundancy(seed: int, length: int, kv_heads: int, tile_bytes: int):
    """The largest cosine with an earlier token, token by token."""
    key = heads(seed, length, kv_heads)
    with patch.object(scores, "TILE_BYTES", tile_bytes):
        redundancy = scores.redundancy(key)
    cosine = torch.nn.functional.cosine_similarity
    for token in range(length):
        expected = sum(
            max(
                (
                    cosine(key[token, head], key[other, head], dim=0).item()
                    for other in range(token)
                ),
                default=-1.0,
            )
            for head in range(kv_heads)
        )
        assert redundancy[token].item() == pytest.approx(expected, abs=1e-4)


def test_the_first_of_equal_tokens_is_not_redundant():
    """Dropping by similarity leaves one of them."""
    key = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])[:, None]
    assert scores.redundancy(key).tolist() == [-1.0, 0.0, 1.0, 1.0]
