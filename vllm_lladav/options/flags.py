# SPDX-License-Identifier: Apache-2.0
"""The plugin's flags in ``vllm serve``."""

from argparse import SUPPRESS, Namespace
from dataclasses import fields
from typing import Any

from vllm_lladav.denoising.params import CACHES, REMASKING
from vllm_lladav.options.server import (
    ADDITIONAL_CONFIG_KEY,
    DENOISING_PRESETS,
    PLUGINS,
    ServerConfig,
)
from vllm_lladav.pruning.params import POLICIES, POSITIONS, QUERIES


def add_arguments(parser: Any) -> None:
    """Add the argument group to vLLM's parser."""
    defaults = ServerConfig()
    group = parser.add_argument_group(
        title="LLaDA-V",
        description="Defaults and limits of masked-diffusion decoding. A request "
        "overrides the defaults through vllm_xargs.",
    )

    def add(name: str, text: str, default: str = "", **kwargs: Any) -> None:
        default = default or getattr(defaults, name)
        group.add_argument(
            "--" + name.replace("_", "-"),
            default=SUPPRESS,
            help=f"{text} (default: {default})",
            **kwargs,
        )

    add("plugin", "What the engine does beyond exact denoising.", choices=PLUGINS)
    add(
        "denoising",
        "Preset of --cache, --refresh-interval, --confidence-* and --block-length, "
        "each of which can still be set: exact computes what the official code "
        "computes; fast is dual cache and confidence decoding.",
        choices=tuple(DENOISING_PRESETS),
    )
    add(
        "gen_length",
        "Canvas length, in tokens, of a request without max_tokens or gen_length.",
        type=int,
    )
    add(
        "block_length",
        "Largest block of the canvas of a request without block_length; canvases "
        "are rounded up to whole blocks and answers cut.",
        type=int,
    )
    add(
        "tokens_per_step",
        "Canvas positions unmasked per denoising step of a request without steps.",
        type=int,
    )
    add(
        "remasking",
        "Which positions keep their prediction: the most confident or random ones.",
        choices=REMASKING,
    )
    add("max_gen_length", "Longest canvas that a request may ask for.", type=int)
    add(
        "confidence_threshold",
        "A step unmasks every position of this confidence, at least one, instead of "
        "a fixed number; steps is then a bound. 0 is off.",
        type=float,
    )
    add(
        "confidence_factor",
        "The same with the factor rule of Fast-dLLM. 0 is off.",
        type=float,
    )
    add(
        "cache",
        "What denoising steps read from the KV blocks instead of computing it: "
        "nothing (exact), the prompt, the prefix before the current block, or dual: "
        "everything outside of it.",
        choices=CACHES,
    )
    add(
        "refresh_interval",
        "With a cache: every so many steps compute everything.",
        type=int,
    )
    add(
        "cfg_scale",
        "Strength of classifier-free guidance; 0 is off. A guided request costs "
        "twice as much and holds twice the KV blocks.",
        type=float,
    )
    add(
        "full_step_tokens",
        "Most tokens of first and refreshing steps in an iteration that also runs "
        "cached steps, which would wait for them; one such step always fits. 0 is no "
        "limit.",
        type=int,
    )
    add(
        "prune_rate",
        "With --plugin pruning: share of the visual tokens that is dropped in the "
        "first denoising step; 0 is off.",
        type=float,
    )
    add(
        "prune_layer",
        "Decoder layer, counted from 1, after which they are dropped.",
        default="half the depth, rounded up",
        type=int,
    )
    add(
        "prune_stages",
        "Several cuts instead, as step:layer:rate,step:layer:rate; each rate is of "
        "the visual tokens that are still there.",
        type=str,
    )
    add("prune_policy", "How visual tokens are ranked.", choices=POLICIES)
    add(
        "prune_queries",
        "Rows whose attention counts: all positions, masked positions of the "
        "canvas, or the last position.",
        default="answer for the policy aggregated, else all",
        choices=QUERIES,
    )
    add(
        "prune_positions",
        "Positions of the kept tokens: their own, or renumbered without gaps.",
        choices=POSITIONS,
    )
    add(
        "prune_min_visual_tokens",
        "A request with fewer visual tokens is left alone.",
        type=int,
    )
    add(
        "prune_tau",
        "Share of the attention mass that the policy adaptive keeps, dropping at "
        "least --prune-rate.",
        type=float,
    )


def merge_arguments(
    args: Namespace, additional_config: dict[str, Any] | None
) -> dict[str, Any]:
    """``additional_config`` with the flags that were given in it, validated."""
    given = {
        field.name: value
        for field in fields(ServerConfig)
        if (value := vars(args).get(field.name)) is not None
    }
    merged = dict(additional_config or {})
    if given:
        merged[ADDITIONAL_CONFIG_KEY] = {
            **merged.get(ADDITIONAL_CONFIG_KEY, {}),
            **given,
        }
    if ADDITIONAL_CONFIG_KEY in merged:
        ServerConfig.from_values(merged[ADDITIONAL_CONFIG_KEY])
    return merged


def refuse(asked_for: dict[str, object]) -> None:
    """Raise ``ValueError`` if the user asked for what denoising cannot do.

    Every step recomputes tokens that all others attend to: a prompt can neither
    be processed in chunks nor shared as a prefix.
    """
    flags = [flag for flag, value in asked_for.items() if value]
    if flags:
        raise ValueError(f"LLaDA-V cannot be served with {', '.join(flags)}")
