# SPDX-License-Identifier: Apache-2.0
"""K/V of the layers before a prune point, moved to compact KV slots."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from vllm.model_executor.layers.attention import Attention

from vllm_lladav.worker.scoring import SeenLayer

PLAIN_CACHES = ("FLASH_ATTN", "TRITON_ATTN")
"""Backends with a cache of ``[blocks, kv_heads, block_size, K and V]``, in any order in
memory: a token's K and V can be read and written where its slot says."""


class Move(NamedTuple):
    """What a prune point moves, of the requests that it prunes.

    Attributes:
        stays: of each request, by its place in the batch: which of its rows stay:
            ``[rows]``, bool.
        before: KV slots of those that stay: ``[n]``, int64, request by request.
        after: their new ones.
    """

    stays: Mapping[int, torch.Tensor]
    before: torch.Tensor
    after: torch.Tensor


class Compaction(Protocol):
    """Follows the layers of a forward pass, and moves their K/V at a prune point."""

    def see(self, layer: SeenLayer, rows: Mapping[int, slice]) -> None:
        """A layer is about to attend. ``rows`` are those of the requests that will
        still be pruned, by their place in the batch."""

    def move(self, move: Move) -> None:
        """Move K/V of all layers that were seen."""


def compaction_for(attention: Attention) -> Compaction:
    """How K/V of layers like this one is moved."""
    is_plain = attention.attn_backend.get_name() in PLAIN_CACHES
    # These have a scale for every token, which lies elsewhere.
    is_scaled = attention.kv_cache_dtype.endswith("per_token_head")
    return InCache() if is_plain and not is_scaled else FromInputs()


class InCache:
    """Reads the cache and writes it: nothing is kept meanwhile."""

    def __init__(self) -> None:
        self._attentions: list[Attention] = []

    def see(self, layer: SeenLayer, rows: Mapping[int, slice]) -> None:
        self._attentions.append(layer.attention)

    def move(self, move: Move) -> None:
        for attention in self._attentions:
            cache = attention.kv_cache.transpose(1, 2)
            size = cache.shape[1]
            # Read as a whole before anything is written.
            moved = cache[move.before // size, move.before % size]
            cache[move.after // size, move.after % size] = moved


class FromInputs:
    """Keeps K/V of the requests that prune and has the backend write it again, for
    caches whose layout is the backend's own."""

    def __init__(self) -> None:
        self._layers: list[tuple[Attention, dict[int, list[torch.Tensor]]]] = []

    def see(self, layer: SeenLayer, rows: Mapping[int, slice]) -> None:
        # Copied: the value is a view of what queries and keys lie in, too.
        kept = {
            index: [layer.key[part].clone(), layer.value[part].clone()]
            for index, part in rows.items()
        }
        self._layers.append((layer.attention, kept))

    def move(self, move: Move) -> None:
        for attention, kept in self._layers:
            for index, stays in move.stays.items():
                kept[index] = [x[stays] for x in kept[index]]
            key, value = (
                torch.cat(parts).unflatten(-1, (attention.num_kv_heads, -1))
                for parts in zip(*(kept[index] for index in move.stays), strict=True)
            )
            # Every paged backend has it, the base class has not.
            impl: Any = attention.impl
            impl.do_kv_cache_update(
                attention, key, value, attention.kv_cache, move.after
            )
