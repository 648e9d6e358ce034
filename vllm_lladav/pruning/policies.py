# SPDX-License-Identifier: Apache-2.0
"""Rankings of visual tokens by name. The engine counts, drops and compacts.

A policy names the layers that it looks at and turns what it sees there into scores
(higher is better). Scores of several layers and of several tensor-parallel ranks
are added up.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vllm_lladav.pruning.scores import attention_received, redundancy


@dataclass(frozen=True)
class View:
    """What a policy sees of one request in one layer.

    Attributes:
        query: ``[n, heads, head_dim]``, rotary embedding applied; the heads of this
            rank.
        key: ``[n, kv_heads, head_dim]``, the same.
        scale: of the attention.
        rows: ``[r]``, int64: positions whose attention counts.
        visual: ``[m]``, int64: positions of the visual tokens.
        num_kept: how many of them will be kept (at most, if adaptive).
        seed: of the request; the same on all ranks.
    """

    query: torch.Tensor
    key: torch.Tensor
    scale: float
    rows: torch.Tensor
    visual: torch.Tensor
    num_kept: int
    seed: int | None


@dataclass(frozen=True)
class Policy:
    """
    Attributes:
        score: ``[m]`` float32 for the visual tokens of a view.
        from_first_layer: whether it looks at layers 1 to K instead of K alone.
    """

    score: Callable[[View], torch.Tensor]
    from_first_layer: bool = False

    def observes(self, layer: int, prune_layer: int) -> bool:
        return layer == prune_layer or (self.from_first_layer and layer < prune_layer)


def _attention(view: View) -> torch.Tensor:
    query = view.query[view.rows]
    return attention_received(query, view.key, view.scale, view.visual)


def _distinctness(view: View) -> torch.Tensor:
    return -redundancy(view.key[view.visual])


def _uniform(view: View) -> torch.Tensor:
    """1 for ``num_kept`` tokens at even distances, 0 for the others."""
    num_visual = len(view.visual)
    scores = torch.zeros(num_visual, device=view.visual.device)
    kept = torch.arange(view.num_kept, device=scores.device)
    scores[kept * num_visual // view.num_kept] = 1.0
    return scores


def _random(view: View) -> torch.Tensor:
    assert view.seed is not None
    generator = torch.Generator().manual_seed(view.seed)
    return torch.rand(len(view.visual), generator=generator).to(view.visual.device)


POLICY = {
    "fastv": Policy(_attention),
    "aggregated": Policy(_attention, from_first_layer=True),
    "adaptive": Policy(_attention),
    "similarity": Policy(_distinctness),
    "uniform": Policy(_uniform),
    "random": Policy(_random),
}
