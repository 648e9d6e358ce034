# SPDX-License-Identifier: Apache-2.0
"""FastV (arXiv 2403.06764): the attention that a token receives in one layer."""

from typing import TYPE_CHECKING

from vllm_lladav.pruning.policy import Policy, View, ViewShape

if TYPE_CHECKING:
    import torch


class FastV(Policy):
    """Softmax weights of the prune layer, averaged over the rows that count."""

    name = "fastv"
    uses_queries = True

    def score(self, view: View) -> "torch.Tensor":
        query = view.query[view.rows]
        return view.attention_received(query, view.key, view.scale, view.visual)

    def flops(self, shape: ViewShape) -> int:
        return 2 * shape.rows * shape.length * shape.num_heads * shape.head_dim
