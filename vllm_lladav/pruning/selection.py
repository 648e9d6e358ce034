# SPDX-License-Identifier: Apache-2.0
"""Which visual tokens stay, given their scores. Pure functions."""

import torch

from vllm_lladav.pruning.policy import Policy


def select_kept(
    policy: Policy,
    scores: torch.Tensor,
    image_ids: torch.Tensor,
    num_images: int,
    num_kept: int,
    tau: float,
) -> torch.Tensor:
    """The best tokens, with at least one of every image.

    Args:
        policy: may let fewer stay than ``num_kept``.
        scores: ``[n]``, float32; higher is better, the lower position wins a tie.
        image_ids: ``[n]``, int64: the image of each token, from 0.
        num_images: each of them has tokens.
        num_kept: most tokens that stay; at least the number of images.
        tau: of the request.

    Returns:
        ``[num_kept or fewer]``, int64, ascending.
    """
    order = ranking(scores, image_ids, num_images)
    count = policy.count(scores[order], num_kept, tau)
    return order[: min(max(count, num_images), num_kept)].sort().values


def ranking(
    scores: torch.Tensor, image_ids: torch.Tensor, num_images: int
) -> torch.Tensor:
    """``[n]``, int64: tokens from best to worst, the best of every image ahead."""
    order = scores.argsort(descending=True, stable=True)
    # Ranks are made into sort keys on the device, so that the host waits for nothing.
    ranks = torch.arange(len(order), device=order.device)
    best = ranks.new_full((num_images,), len(order))
    best.scatter_reduce_(0, image_ids[order], ranks, "amin")
    ranks[best] -= len(order)
    return order[ranks.argsort()]
