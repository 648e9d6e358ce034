# SPDX-License-Identifier: Apache-2.0
"""From the options of a server and of a request to the request's parameters.

Pure: the server's front end, ``vllm-lladav eval`` and ``vllm-lladav capacity`` all ask
here what a request means.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from vllm_lladav.denoising.params import DenoisingParams
from vllm_lladav.options.kinds import refused
from vllm_lladav.options.options import DenoisingOptions, RequestOptions, ServerOptions
from vllm_lladav.options.reading import read_request
from vllm_lladav.pruning.params import PruneStage, PruningParams, parse_stages
from vllm_lladav.pruning.policies import policy_of


def resolve(
    server: ServerOptions,
    values: Mapping[str, Any],
    num_layers: int | None,
    max_tokens: int | None = None,
    most: int | None = None,
    **sampling: Any,
) -> DenoisingParams:
    """
    Args:
        server: whose defaults and limits hold.
        values: of the request's options, as sent (``vllm_xargs``).
        num_layers: decoder layers of the model; None if that is not known, which
            leaves layers unchecked and pruning after the first one by default.
        max_tokens: that the client sent; None if it sent none.
        most: canvas positions that there is room for, at least 1. A canvas whose length
            the client did not set is no longer than that, nor than the server allows.
        sampling: further fields of :class:`DenoisingParams`, over the options.

    Raises:
        OptionError: naming the option, its value and what is allowed.
    """
    options = read_request(server, values)
    longest = server.max_gen_length
    most = longest if most is None else min(most, longest)
    lengths = _lengths(options, max_tokens, server, most)
    inherited = {
        item.name: getattr(options, item.name) for item in fields(DenoisingOptions)
    }
    pruning = None
    if server.plugin == "pruning":
        pruning = _pruning(options, num_layers, lengths["steps"])
    return DenoisingParams(**{**inherited, **lengths, "pruning": pruning, **sampling})


def _lengths(
    options: RequestOptions, max_tokens: int | None, server: ServerOptions, most: int
) -> dict[str, int]:
    """gen_length, block_length, steps and max_answer_tokens."""
    wanted = options.gen_length if max_tokens is None else max_tokens
    if "gen_length" in options.given:
        gen_length, block_length = _canvas_asked_for(options, server)
    else:
        gen_length, block_length = _canvas_for(wanted, options, most)
    num_blocks = gen_length // block_length
    steps = options.steps
    if steps is None:
        steps = -(-block_length // server.tokens_per_step) * num_blocks
    if steps % num_blocks:
        allowed = (
            f"a multiple of the number of blocks ({num_blocks} of {block_length} "
            "positions each)"
        )
        raise refused("steps", allowed, steps)
    return {
        "gen_length": gen_length,
        "block_length": block_length,
        # A step that finds no mask left in its block changes nothing.
        "steps": min(steps // num_blocks, block_length) * num_blocks,
        "max_answer_tokens": min(wanted, gen_length),
    }


def _canvas_asked_for(
    options: RequestOptions, server: ServerOptions
) -> tuple[int, int]:
    """gen_length and block_length of a client that set the former: taken as they are,
    or refused."""
    gen_length, block_length = options.gen_length, options.block_length
    if not 1 <= gen_length <= server.max_gen_length:
        allowed = f"at least 1 and at most {server.max_gen_length} (--max-gen-length)"
        raise refused("gen_length", allowed, gen_length)
    if "block_length" not in options.given:
        block_length = min(block_length, gen_length)
    if gen_length % block_length:
        allowed = f"a divisor of gen_length ({gen_length})"
        raise refused("block_length", allowed, block_length)
    return gen_length, block_length


def _canvas_for(wanted: int, options: RequestOptions, most: int) -> tuple[int, int]:
    """gen_length and block_length for an answer of ``wanted`` tokens: the fewest blocks
    that hold it, or as many as ``most`` positions hold, since ``max_tokens`` is no more
    than a bound."""
    if wanted < 1:
        raise refused("max_tokens", "at least 1", wanted)
    block_length = options.block_length
    if "block_length" not in options.given:
        block_length = min(block_length, wanted, most)
    if block_length > most:
        raise refused("block_length", f"at most {most}, what fits", block_length)
    num_blocks = min(-(-wanted // block_length), most // block_length)
    return num_blocks * block_length, block_length


def _pruning(
    options: RequestOptions, num_layers: int | None, num_steps: int
) -> PruningParams | None:
    """None if nothing is to be pruned; layers are checked also then."""
    stages = _stages(options, num_layers, num_steps)
    if not stages:
        return None
    queries = options.prune_queries or policy_of(options.prune_policy).default_queries
    others = {
        item.name: getattr(options, f"prune_{item.name}")
        for item in fields(PruningParams)
        if item.name != "stages"
    }
    return PruningParams(**{**others, "stages": stages, "queries": queries})


def _stages(
    options: RequestOptions, num_layers: int | None, num_steps: int
) -> tuple[PruneStage, ...]:
    if num_layers is not None:
        check_depth(options, num_layers)
    if options.prune_stages is None:
        # Half the depth, rounded up: middle-to-late, as in arXiv 2601.20168.
        layer = options.prune_layer or -(-(num_layers or 1) // 2)
        is_off = options.prune_rate == 0
        return () if is_off else (PruneStage(1, layer, options.prune_rate),)
    stages = parse_stages(options.prune_stages)
    # A server's late stage is no error of a request with few steps.
    if "prune_stages" in options.given and stages[-1].step > num_steps:
        allowed = f"within the steps of the request ({num_steps})"
        raise refused("prune_stages", allowed, f"step {stages[-1].step}")
    return stages


def check_depth(options: RequestOptions, num_layers: int) -> None:
    """Check the layers of a server's or a request's options against the model's.

    Raises:
        OptionError: if tokens are to be dropped after a layer that is not there.
    """
    allowed = f"at most {num_layers}, the model's depth"
    if options.prune_layer is not None and options.prune_layer > num_layers:
        raise refused("prune_layer", allowed, options.prune_layer)
    if options.prune_stages is not None:
        for stage in parse_stages(options.prune_stages):
            if stage.layer > num_layers:
                raise refused("prune_stages", allowed, f"layer {stage.layer}")
