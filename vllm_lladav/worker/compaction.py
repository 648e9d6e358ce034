# SPDX-License-Identifier: Apache-2.0
"""K/V of the layers before a prune point, written again to compact KV slots.

Cache layouts differ between attention backends, so the layers' inputs are kept and
written by the backend's own update; bytes of the cache are never moved.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from vllm.model_executor.layers.attention import Attention


@dataclass
class SeenLayer:
    """What a layer attends with, over the rows of the batch that are left.

    Attributes:
        attention: vLLM's module.
        query: ``[num_tokens, heads * head_dim]``, rotary embedding applied; None
            once nobody will look at it.
        key: ``[num_tokens, kv_heads * head_dim]``, the same.
        value: of the shape of ``key``.
    """

    attention: Attention
    query: torch.Tensor | None
    key: torch.Tensor
    value: torch.Tensor

    def compact(
        self, rows: torch.Tensor, moved: torch.Tensor, slots: torch.Tensor
    ) -> None:
        """Forget all but ``rows``, and write those of them that ``moved`` counts to
        the KV ``slots``. All are ``[...]``, int64."""
        self.key, self.value = self.key[rows], self.value[rows]
        attention = self.attention
        shape = (-1, attention.num_kv_heads, attention.head_size)
        # Every paged backend has it, the base class has not.
        impl: Any = attention.impl
        impl.do_kv_cache_update(
            attention,
            self.key[moved].view(shape),
            self.value[moved].view(shape),
            attention.kv_cache,
            slots,
        )


@contextmanager
def watched(attentions: Sequence[Attention]) -> Iterator[list[SeenLayer]]:
    """The list grows by a layer whenever the next of ``attentions`` runs."""
    seen: list[SeenLayer] = []

    def see(attention: Any, args: tuple[torch.Tensor, ...]) -> None:
        seen.append(SeenLayer(attention, *args[:3]))

    handles = [attention.register_forward_pre_hook(see) for attention in attentions]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
        seen.clear()
