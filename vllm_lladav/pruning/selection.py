# SPDX-License-Identifier: Apache-2.0
"""Which visual tokens stay, given their scores. Pure functions."""

import torch


def select_kept(
    scores: torch.Tensor, image_ids: torch.Tensor, num_kept: int
) -> torch.Tensor:
    """The best tokens, with at least one of every image.

    Args:
        scores: ``[n]``; higher is better, the lower position wins a tie.
        image_ids: ``[n]``, int64: the image of each token.
        num_kept: tokens to keep; at least the number of images.

    Returns:
        ``[num_kept]``, int64, ascending.
    """
    order = ranking(scores, image_ids)
    return order[:num_kept].sort().values


def count_covering(scores: torch.Tensor, image_ids: torch.Tensor, tau: float) -> int:
    """The fewest tokens, in order of their ranking, that hold the share ``tau`` of
    all scores (arXiv 2410.08584): at least one of every image.

    ``scores`` are ``[n]`` and not negative.
    """
    num_images = len(image_ids.unique())
    ranked = scores[ranking(scores, image_ids)].double()
    held = ranked.cumsum(0)
    short = int((held < tau * held[-1]).sum())
    return max(min(short + 1, len(scores)), num_images)


def ranking(scores: torch.Tensor, image_ids: torch.Tensor) -> torch.Tensor:
    """``[n]``, int64: tokens from best to worst, the best of every image ahead."""
    order = scores.argsort(descending=True, stable=True)
    ranked_images = image_ids[order]
    is_best = torch.zeros_like(order, dtype=torch.bool)
    for image in image_ids.unique():
        is_best[(ranked_images == image).nonzero()[0]] = True
    return torch.cat([order[is_best], order[~is_best]])
