# SPDX-License-Identifier: Apache-2.0
"""From what a client sent, and the server's defaults, to :class:`PruningParams`."""

from vllm.exceptions import VLLMValidationError

from vllm_lladav.options.request_args import RequestArgs, invalid
from vllm_lladav.options.server import ServerConfig
from vllm_lladav.pruning.params import (
    POSITIONS,
    QUERIES,
    PruneStage,
    PruningParams,
    parse_stages,
)
from vllm_lladav.pruning.policies import POLICIES, policy_of

PRUNING_ARGS = (
    "prune_rate",
    "prune_layer",
    "prune_stages",
    "prune_policy",
    "prune_queries",
    "prune_positions",
    "prune_min_visual_tokens",
    "prune_tau",
)


def default_layer(num_layers: int) -> int:
    """Half the depth, rounded up: middle-to-late, as in arXiv 2601.20168."""
    return -(-num_layers // 2)


def resolve_pruning(
    args: RequestArgs, server: ServerConfig, num_layers: int, num_steps: int
) -> PruningParams | None:
    """The request's pruning; None if nothing is to be pruned.

    Every value is checked, also where another one turns pruning off.

    Raises:
        VLLMValidationError: naming the parameter, its value and what is allowed.
    """
    if server.plugin != "pruning":
        for name in PRUNING_ARGS:
            # Who asks for no pruning gets none.
            is_off = name == "prune_rate" and args.number(name, 0.0) == 0
            if name in args and not is_off:
                raise VLLMValidationError(
                    f"{name} needs a server that runs with --plugin pruning",
                    parameter=name,
                )
        return None
    policy = args.one_of("prune_policy", POLICIES, server.prune_policy)
    queries = args.one_of(
        "prune_queries",
        QUERIES,
        server.prune_queries or policy_of(policy).default_queries,
    )
    positions = args.one_of("prune_positions", POSITIONS, server.prune_positions)
    least = args.integer(
        "prune_min_visual_tokens", server.prune_min_visual_tokens, least=0
    )
    tau = args.number("prune_tau", server.prune_tau)
    if not 0 < tau <= 1:
        raise invalid("prune_tau", tau, "above 0 and at most 1")
    stages = _resolve_stages(args, server, num_layers, num_steps)
    if not stages:
        return None
    return PruningParams(stages, policy, queries, positions, least, tau)


def _resolve_stages(
    args: RequestArgs, server: ServerConfig, num_layers: int, num_steps: int
) -> tuple[PruneStage, ...]:
    rate = args.number("prune_rate", server.prune_rate)
    if not 0 <= rate < 1:
        raise invalid("prune_rate", rate, "at least 0 (off) and below 1")
    layer = args.integer("prune_layer", server.prune_layer or default_layer(num_layers))
    if layer > num_layers:
        raise invalid("prune_layer", layer, f"at most {num_layers}, the model's depth")
    sets_one = "prune_rate" in args or "prune_layer" in args
    if "prune_stages" in args:
        if sets_one:
            raise invalid(
                "prune_stages", "it", "sent without prune_rate and prune_layer"
            )
        stages = _parse(args.string("prune_stages", ""), num_layers)
        if stages[-1].step > num_steps:
            raise invalid(
                "prune_stages",
                f"step {stages[-1].step}",
                f"within the steps of the request ({num_steps})",
            )
        return stages
    if server.prune_stages is not None and not sets_one:
        return _parse(server.prune_stages, num_layers)
    return (PruneStage(1, layer, rate),) if rate else ()


def _parse(text: str, num_layers: int) -> tuple[PruneStage, ...]:
    try:
        stages = parse_stages(text)
    except ValueError as error:
        raise invalid("prune_stages", error, "step:layer:rate,...") from None
    for stage in stages:
        if stage.layer > num_layers:
            raise invalid(
                "prune_stages",
                f"layer {stage.layer}",
                f"layers of at most {num_layers}, the model's depth",
            )
    return stages
