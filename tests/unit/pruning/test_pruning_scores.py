# SPDX-License-Identifier: Apache-2.0
"""Tiled scores against the plain ones, and policies on top of them."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_lladav.pruning import scores
from vllm_lladav.pruning.policies import POLICY, View


def view(seed: int, length: int, kv_heads: int, group: int, num_kept: int = 1) -> View:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(length, kv_heads * group, 8, generator=generator) * 2
    key = torch.randn(length, kv_heads, 8, generator=generator) * 2
    chosen = torch.randperm(length, generator=generator)
    visual = chosen[: max(1, length // 2)].sort().values
    rows = chosen[length // 3 :].sort().values
    return View(query, key, 0.3, rows, visual, num_kept, seed)


SHAPES = (st.integers(0, 2**32), st.integers(2, 70), st.integers(1, 3))


@settings(deadline=None)
@given(*SHAPES, st.integers(1, 3), st.sampled_from([1, 3000, 1 << 20]))
def test_attention_received(
    seed: int, length: int, kv_heads: int, group: int, tile_bytes: int
):
    """Softmax weights of [heads, rows, n], made at once, in float64."""
    seen = view(seed, length, kv_heads, group)
    key = seen.key.repeat_interleave(group, dim=1).double()
    query = seen.query[seen.rows].double()
    weights = torch.einsum("qhd,khd->hqk", query, key).mul(seen.scale).softmax(-1)
    with patch.object(scores, "TILE_BYTES", tile_bytes):
        received = POLICY["fastv"].score(seen)
    assert received.dtype == torch.float32
    expected = weights.mean(dim=1).sum(dim=0)[seen.visual]
    torch.testing.assert_close(received.double(), expected, rtol=1e-4, atol=1e-6)


def test_weights_of_a_row_add_up_to_one_per_head():
    seen = view(0, 50, 2, 2)
    everything = torch.arange(50)
    received = scores.attention_received(seen.query, seen.key, 1.0, everything)
    assert received.sum().item() == pytest.approx(4.0, rel=1e-5)


@settings(deadline=None)
@given(*SHAPES, st.sampled_from([1, 3000, 1 << 20]))
def test_redundancy(seed: int, length: int, kv_heads: int, tile_bytes: int):
    """The largest cosine with an earlier token, token by token."""
    key = view(seed, length, kv_heads, 1).key
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


@given(st.integers(1, 200), st.data())
def test_uniform(length: int, data: st.DataObject):
    """num_kept tokens, at distances that differ by one at most."""
    num_kept = data.draw(st.integers(1, length))
    visual = torch.arange(length)
    empty = torch.empty(0)
    seen = View(empty, empty, 1.0, visual, visual, num_kept, None)
    kept = POLICY["uniform"].score(seen).nonzero()[:, 0]
    assert len(kept) == num_kept
    gaps = kept.diff().tolist()
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_policies_look_at_the_layers_they_need():
    for name, policy in POLICY.items():
        layers = [layer for layer in range(1, 7) if policy.observes(layer, 4)]
        assert layers == ([1, 2, 3, 4] if name == "aggregated" else [4])
