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
    **sampling: Any,
) -> DenoisingParams:
    """
    Args:
        server: whose defaults and limits hold.
        values: of the request's options, as sent (``vllm_xargs``).
        num_layers: decoder layers of the model; None if that is not known, which
            leaves layers unchecked and pruning after the first one by default.
        max_tokens: that the client sent; None if it sent none.
        sampling: further fields of :class:`DenoisingParams`, over the options.

    Raises:
        OptionError: naming the option, its value and what is allowed.
    """
    options = read_request(server, values)
    lengths = _lengths(options, max_tokens, server)
    inherited = {
        item.name: getattr(options, item.name) for item in fields(DenoisingOptions)
    }
    pruning = None
    if server.plugin == "pruning":
        pruning = _pruning(options, num_layers, lengths["steps"])
    return DenoisingParams(**{**inherited, **lengths, "pruning": pruning, **sampling})


def _lengths(
    options: RequestOptions, max_tokens: int | None, server: ServerOptions
) -> dict[str, int]:
    """gen_length, block_length, steps and max_answer_tokens.

    What the client set is taken as it is or refused. What follows from
    ``max_tokens`` alone is rounded up where it does not divide, and the answer
    is cut.
    """
    is_set = "gen_length" in options.given
    name = "gen_length" if is_set else "max_tokens"
    wanted = options.gen_length if max_tokens is None else max_tokens
    gen_length = options.gen_length if is_set else wanted
    longest = server.max_gen_length
    if not 1 <= gen_length <= longest:
        allowed = f"at least 1 and at most {longest} (--max-gen-length)"
        raise refused(name, allowed, gen_length)
    block_length = options.block_length
    if "block_length" not in options.given:
        block_length = min(block_length, gen_length)
    if is_set and gen_length % block_length:
        allowed = f"a divisor of gen_length ({gen_length})"
        raise refused("block_length", allowed, block_length)
    num_blocks = -(-gen_length // block_length)
    answer_len = min(wanted, gen_length)
    gen_length = num_blocks * block_length
    if gen_length > longest:
        allowed = (
            f"one with which {name} ({answer_len}), rounded up to whole blocks, is "
            f"at most {longest} (--max-gen-length)"
        )
        raise refused("block_length", allowed, block_length)
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
        "max_answer_tokens": answer_len,
    }


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
