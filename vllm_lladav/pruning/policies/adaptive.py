# SPDX-License-Identifier: Apache-2.0
"""As many tokens as hold a share of the attention mass (arXiv 2410.08584)."""

from typing import TYPE_CHECKING

from vllm_lladav.pruning.policies.fastv import FastV

if TYPE_CHECKING:
    import torch


class Adaptive(FastV):
    """FastV's ranking, cut off where the attention mass reaches ``tau``."""

    name = "adaptive"

    def count(self, ranked: "torch.Tensor", num_kept: int, tau: float) -> int:
        """The fewest tokens that hold the share ``tau`` of all scores."""
        held = ranked.double().cumsum(0)
        return int((held < tau * held[-1]).sum()) + 1
