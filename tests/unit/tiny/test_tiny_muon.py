# SPDX-License-Identifier: Apache-2.0
"""The training script's Muon against torch's, which computes in bfloat16."""

import torch
from torch import nn

from examples.tiny.muon import Muon, orthogonal

SETTINGS = {"lr": 0.02, "weight_decay": 0.1, "ns_steps": 5}


def test_updates_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 8), (8, 24), (24, 8), (8, 8)]
    values = [torch.randn(shape, generator=generator) for shape in shapes]
    ours = [nn.Parameter(value.clone()) for value in values]
    theirs = [nn.Parameter(value.clone()) for value in values]
    optimisers = [
        Muon(ours, **SETTINGS),
        torch.optim.Muon(theirs, **SETTINGS, adjust_lr_fn="match_rms_adamw"),
    ]
    for _ in range(3):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            other.grad = mine.grad.clone()
        for optimiser in optimisers:
            optimiser.step()
    for mine, other, start in zip(ours, theirs, values, strict=True):
        moved = other.detach() - start
        difference = (mine - other).detach()
        assert difference.norm() < 0.02 * moved.norm()


def test_orthogonal_matrices_have_like_singular_values() -> None:
    matrices = torch.randn(3, 6, 20, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonal(matrices, 10))
    assert ((values > 0.6) & (values < 1.3)).all()
