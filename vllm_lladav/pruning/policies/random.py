# SPDX-License-Identifier: Apache-2.0
"""Tokens drawn at random from the request's seed: a baseline."""

from typing import TYPE_CHECKING

from vllm_lladav.pruning.policy import Policy, View

if TYPE_CHECKING:
    import torch


class Random(Policy):
    """Equal on all tensor-parallel ranks, as the seed is."""

    name = "random"
    is_random = True

    def score(self, view: View) -> "torch.Tensor":
        import torch

        assert view.seed is not None
        generator = torch.Generator().manual_seed(view.seed)
        drawn = torch.rand(len(view.visual), generator=generator)
        return drawn.to(view.visual.device)
