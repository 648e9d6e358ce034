# SPDX-License-Identifier: Apache-2.0
"""Muon for CPUs: matrices of one shape together, in float32.

The update of ``torch.optim.Muon``, which orthogonalises one matrix after the other and
always in bfloat16. A CPU without bfloat16 products takes longer for that than for the
rest of a small model's step.
"""

from collections.abc import Iterable
from itertools import groupby

import torch

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration, from torch's Muon."""


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; steps as large as AdamW's (``match_rms_adamw``).

    Args:
        matrices: two-dimensional parameters.
        lr: learning rate.
        weight_decay: decoupled.
        ns_steps: iterations.
    """

    def __init__(
        self,
        matrices: Iterable[torch.nn.Parameter],
        lr: float,
        weight_decay: float,
        ns_steps: int,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "ns_steps": ns_steps}
        super().__init__(sorted(matrices, key=lambda matrix: matrix.shape), defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for shape, same in groupby(group["params"], key=lambda p: p.shape):
                matrices = list(same)
                updates = orthogonal(
                    torch.stack([self._momentum(matrix) for matrix in matrices]),
                    group["ns_steps"],
                )
                rate = group["lr"] * 0.2 * max(shape) ** 0.5
                decay = 1 - group["lr"] * group["weight_decay"]
                for matrix, update in zip(matrices, updates, strict=True):
                    matrix.mul_(decay).sub_(update, alpha=rate)

    def _momentum(self, matrix: torch.nn.Parameter) -> torch.Tensor:
        """Nesterov's."""
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        momentum = state["momentum"].lerp_(matrix.grad, 1 - MOMENTUM)
        return matrix.grad.lerp(momentum, MOMENTUM)


def orthogonal(matrices: torch.Tensor, steps: int) -> torch.Tensor:
    """The orthogonal matrix next to each, roughly: ``[n, rows, columns]``."""
    a, b, c = NEWTON_SCHULZ
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x
