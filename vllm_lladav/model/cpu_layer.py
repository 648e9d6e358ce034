# SPDX-License-Identifier: Apache-2.0
"""A decoder layer on a CPU: its rows go through it a piece at a time, in place.

What a layer computes beside attention is of each row alone. All rows of a large step at
once would need activations that leave the cache and that the C library takes from the
system and gives back in every layer: matrix products then wait for page faults (a fifth
of their time, measured with 13,000 rows of the mid-size checkpoint on two cores).
"""

from collections.abc import Iterator
from typing import Any

import torch
from vllm import _custom_ops as ops
from vllm.model_executor.layers.layernorm import RMSNorm

PIECE_BYTES = 8 << 20
"""Of the widest activation of a piece. Below 32 MiB the C library keeps what is freed;
from 128 to 1,024 rows of the mid-size checkpoint took the same time."""
LEAST_ROWS = 64
"""Fewer would read the weights more often than they are worth."""


def forward_on_cpu(
    layer: Any,
    positions: torch.Tensor,
    hidden_states: torch.Tensor,
    residual: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What ``layer`` computes of the same arguments, which are overwritten.

    Args:
        layer: vLLM's ``LlamaDecoderLayer``.
        positions: ``[n]``, int64, for the rotary embedding.
        hidden_states: ``[n, hidden]``, contiguous.
        residual: the same; None for the first layer.

    Returns:
        Hidden states and residual, ``[n, hidden]`` each.
    """
    attention, parts = layer.self_attn, []
    pieces = list(_pieces(hidden_states, layer))
    sizes = [attention.q_size, attention.kv_size, attention.kv_size]
    for rows in pieces:
        of_residual = None if residual is None else residual[rows]
        normed = add_and_norm(layer.input_layernorm, hidden_states[rows], of_residual)
        qkv, _ = attention.qkv_proj(normed)
        query, key, value = qkv.split(sizes, dim=-1)
        parts.append((*attention.rotary_emb(positions[rows], query, key), value))
    if residual is None:
        hidden_states, residual = torch.empty_like(hidden_states), hidden_states
    attended = attention.attn(*(_joined(part) for part in zip(*parts, strict=True)))
    for rows in pieces:
        mixed, _ = attention.o_proj(attended[rows])
        add_and_norm(layer.post_attention_layernorm, mixed, residual[rows])
        hidden_states[rows] = layer.mlp(mixed)
    return hidden_states, residual


def add_and_norm(
    norm: RMSNorm, hidden_states: torch.Tensor, residual: torch.Tensor | None
) -> torch.Tensor:
    """RMSNorm of ``hidden_states`` (``[n, hidden]``) by vLLM's kernel, which its layer
    does not call on a CPU: one pass. With ``residual`` their sum is left there, and its
    norm in ``hidden_states``; without, the norm is new memory."""
    weight, epsilon = norm.weight, norm.variance_epsilon
    if residual is None:
        normed = torch.empty_like(hidden_states)
        ops.rms_norm(normed, hidden_states, weight, epsilon)
        return normed
    ops.fused_add_rms_norm(hidden_states, residual, weight, epsilon)
    return hidden_states


def _pieces(hidden_states: torch.Tensor, layer: Any) -> Iterator[slice]:
    """Rows that go through the layer together."""
    widest = max(
        layer.mlp.gate_up_proj.output_size_per_partition,
        layer.self_attn.qkv_proj.output_size_per_partition,
    )
    row_bytes = widest * hidden_states.element_size()
    most = max(PIECE_BYTES // row_bytes, LEAST_ROWS)
    for first in range(0, len(hidden_states), most):
        yield slice(first, min(first + most, len(hidden_states)))


def _joined(parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
