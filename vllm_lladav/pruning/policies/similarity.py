# SPDX-License-Identifier: Apache-2.0
"""How unlike a token's key is to the keys of the visual tokens before it."""

from typing import TYPE_CHECKING

from vllm_lladav.pruning.policy import Policy, View, ViewShape

if TYPE_CHECKING:
    import torch


class Similarity(Policy):
    """Of several tokens that are alike, the first stays longest."""

    name = "similarity"

    def score(self, view: View) -> "torch.Tensor":
        from vllm_lladav.pruning.scores import redundancy

        return -redundancy(view.key[view.visual])

    def flops(self, shape: ViewShape) -> int:
        return 2 * shape.num_visual**2 * shape.num_kv_heads * shape.head_dim
