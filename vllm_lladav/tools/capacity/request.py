# SPDX-License-Identifier: Apache-2.0
"""The request that all clients send."""

from dataclasses import dataclass
from typing import Any

from vllm_lladav.denoising.plan import StepPlan
from vllm_lladav.denoising.resolve import resolve
from vllm_lladav.options.kinds import LARGEST_INTEGER
from vllm_lladav.options.options import REQUEST_OPTIONS
from vllm_lladav.options.reading import read_server
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
    images: Images, text_tokens: int, num_layers: int, **options: Any
) -> StepPlan:
    """The steps of a request with a fixed number of transfers and no stop, as a server
    plans them that has the plugin ``pruning`` if one of the options needs it.

    Args:
        text_tokens: of the prompt, template included.
        num_layers: of the decoder.
        options: of the request, as in ``vllm_xargs``.

    Raises:
        ValueError: naming what is wrong.
    """
    if text_tokens < 1:
        raise ValueError(f"text_tokens must be at least 1: {text_tokens}")
    plugins = {REQUEST_OPTIONS[name].plugin for name in options} - {None}
    server = read_server(
        {
            "plugin": "pruning" if plugins else "none",
            "max_gen_length": LARGEST_INTEGER,
        }
    )
    params = resolve(server, options, num_layers, seed=0)
    return StepPlan(params, text_tokens + sum(images.tokens), images.tokens)
