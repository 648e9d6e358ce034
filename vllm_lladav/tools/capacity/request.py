# SPDX-License-Identifier: Apache-2.0
"""The request that all clients send."""

from dataclasses import dataclass

from vllm_lladav.denoising.params import DenoisingParams
from vllm_lladav.denoising.plan import StepPlan
from vllm_lladav.pruning.params import PruneStage, PruningParams
from vllm_lladav.tools.checkpoint import Checkpoint


@dataclass(frozen=True)
class Images:
    """
    Attributes:
        tokens: visual tokens of each.
        num_tiles: of all.
    """

    tokens: tuple[int, ...] = ()
    num_tiles: int = 0


def images_of(
    checkpoint: Checkpoint,
    sizes: list[tuple[int, int]],
    mode: str,
    visual_tokens: int | None,
) -> Images:
    """From sizes in pixels, or from a number of visual tokens, for as many tiles as
    that takes."""
    if visual_tokens is None:
        return Images(*checkpoint.visual(sizes, mode))
    if sizes:
        raise ValueError("give sizes of images or visual tokens, not both")
    if visual_tokens < 1:
        return Images()
    return Images((visual_tokens,), -(-visual_tokens // checkpoint.tile_grid**2))


def make_plan(
    images: Images,
    text_tokens: int,
    gen_length: int,
    block_length: int | None = None,
    steps: int | None = None,
    cache: str = "none",
    refresh_interval: int = 25,
    prune_rate: float = 0,
    prune_layer: int = 1,
    cfg_scale: float = 0,
) -> StepPlan:
    """The steps of a request with a fixed number of transfers and no stop.

    Args:
        text_tokens: of the prompt, template included.
        block_length: the whole canvas by default.
        steps: one per canvas position by default.
        prune_rate: share of the visual tokens that goes in the first step; 0 is off.

    Raises:
        ValueError: naming what is wrong.
    """
    block_length = gen_length if block_length is None else block_length
    steps = gen_length if steps is None else steps
    for name, value in (
        ("text_tokens", text_tokens),
        ("gen_length", gen_length),
        ("block_length", block_length),
        ("steps", steps),
        ("refresh_interval", refresh_interval),
        ("prune_layer", prune_layer),
    ):
        if value < 1:
            raise ValueError(f"{name} must be at least 1: {value}")
    if gen_length % block_length:
        raise ValueError(
            f"block_length must be a divisor of gen_length ({gen_length}): "
            f"{block_length}"
        )
    num_blocks = gen_length // block_length
    if steps % num_blocks:
        raise ValueError(
            f"steps must be a multiple of the number of blocks ({num_blocks}): {steps}"
        )
    if not 0 <= prune_rate < 1:
        raise ValueError(f"prune_rate must be at least 0 and below 1: {prune_rate:g}")
    if cfg_scale < 0:
        raise ValueError(f"cfg_scale must be at least 0: {cfg_scale:g}")
    stages = (PruneStage(1, prune_layer, prune_rate),)
    params = DenoisingParams(
        gen_length=gen_length,
        block_length=block_length,
        steps=steps,
        temperature=0.0,
        remasking="low_confidence",
        seed=None,
        max_answer_tokens=gen_length,
        cache=cache,
        refresh_interval=refresh_interval,
        pruning=PruningParams(stages) if prune_rate else None,
        cfg_scale=cfg_scale,
    )
    return StepPlan(params, text_tokens + sum(images.tokens), images.tokens)
