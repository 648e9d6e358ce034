# SPDX-License-Identifier: Apache-2.0
"""How much each visual token matters to a layer, as pure functions on tensors.

Everything is summed over the heads at hand, so that tensor-parallel ranks, which
hold different heads, add up to the score of all heads.
"""

import torch

TILE_BYTES = 32 << 20
"""Float32 attention weights that exist at once."""


def attention_received(
    query: torch.Tensor, key: torch.Tensor, scale: float, columns: torch.Tensor
) -> torch.Tensor:
    """Attention that some tokens receive: the score of FastV (arXiv 2403.06764).

    A GPU runs ``kernels/received.py`` instead.

    Args:
        query: ``[rows, heads, head_dim]``, of the rows whose attention counts.
        key: ``[n, kv_heads, head_dim]``, of the whole sequence; every row attends
            to all of it.
        scale: of the products, before the softmax.
        columns: ``[m]``, int64: which tokens of the sequence.

    Returns:
        ``[m]``, float32: softmax weights, averaged over rows, summed over heads.
        Weights of ``[heads, rows, n]`` never exist at once.
    """
    num_rows, num_heads, _ = query.shape
    num_keys, num_kv_heads, _ = key.shape
    transposed = key.float().permute(1, 2, 0)  # [kv_heads, head_dim, n]
    groups = query.float().unflatten(1, (num_kv_heads, num_heads // num_kv_heads))
    received = torch.zeros(num_keys, device=key.device)
    for rows in groups.split(max(1, TILE_BYTES // (4 * num_heads * num_keys))):
        # [kv_heads, group * rows, n]
        logits = rows.permute(1, 2, 0, 3).flatten(1, 2) @ transposed
        received += logits.mul_(scale).softmax(dim=-1).sum(dim=(0, 1))
    return received[columns] / num_rows


def redundancy(key: torch.Tensor) -> torch.Tensor:
    """Largest cosine of each token's key with that of any token before it.

    ``[n, heads, head_dim]`` -> ``[n]``, float32, summed over heads. Looking back
    only means that of several tokens that are alike the first is not redundant;
    the very first token has -1 per head.
    """
    num_tokens, num_heads, _ = key.shape
    unit = torch.nn.functional.normalize(key.float(), dim=-1).transpose(0, 1)
    largest = torch.full((num_heads, num_tokens), -1.0, device=key.device)
    position = torch.arange(num_tokens, device=key.device)
    for rows in position.split(max(1, TILE_BYTES // (4 * num_heads * num_tokens))):
        cosine = unit[:, rows] @ unit.mT
        later = position[None, :] >= rows[:, None]
        largest[:, rows] = cosine.masked_fill_(later, -1.0).amax(dim=-1)
    return largest.sum(dim=0)
