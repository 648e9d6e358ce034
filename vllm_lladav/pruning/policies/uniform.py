# SPDX-License-Identifier: Apache-2.0
"""Tokens at even distances, whatever they show: a baseline."""

from typing import TYPE_CHECKING

from vllm_lladav.pruning.policy import Policy, View

if TYPE_CHECKING:
    import torch


class Uniform(Policy):
    """1 for ``num_kept`` tokens at even distances, 0 for the others."""

    name = "uniform"

    def score(self, view: View) -> "torch.Tensor":
        import torch

        num_visual = len(view.visual)
        scores = torch.zeros(num_visual, device=view.visual.device)
        kept = torch.arange(view.num_kept, device=scores.device)
        scores[kept * num_visual // view.num_kept] = 1.0
        return scores
