# SPDX-License-Identifier: Apache-2.0
"""The request that all clients send."""

from dataclasses import dataclass
from typing import Any

from vllm_lladav.denoising.plan import StepPlan
from vllm_lladav.denoising.resolve import resolve
from vllm_lladav.options.kinds import LARGEST_INTEGER, Integer
from vllm_lladav.options.options import REQUEST_OPTIONS
from vllm_lladav.options.reading import read_server


@dataclass(frozen=True)
class Images:
    """Visual tokens of each image, and the number of tiles of all."""

    tokens: tuple[int, ...] = ()
    num_tiles: int = 0


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
    Integer().check("text_tokens", text_tokens)
    is_pruned = any(REQUEST_OPTIONS[name].plugin for name in options)
    plugin = "pruning" if is_pruned else "none"
    server = read_server({"plugin": plugin, "max_gen_length": LARGEST_INTEGER})
    params = resolve(server, options, num_layers, seed=0)
    return StepPlan(params, text_tokens + sum(images.tokens), images.tokens)
