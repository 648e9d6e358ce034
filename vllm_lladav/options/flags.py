# SPDX-License-Identifier: Apache-2.0
"""Options on command lines: those of ``vllm serve``, and those of the tools."""

from argparse import SUPPRESS, Namespace
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from vllm_lladav.options.option import Option
from vllm_lladav.options.options import SERVER_OPTIONS
from vllm_lladav.options.reading import ADDITIONAL_CONFIG_KEY, read_server


def add_flags(group: Any, options: Iterable[Option]) -> None:
    """Add a flag for each option to a group of an ``argparse`` parser.

    A flag that is not given leaves no attribute behind: see :func:`given_flags`.
    """
    for option in options:
        group.add_argument(
            option.flag,
            default=SUPPRESS,
            help=f"{option.help} (default: {option.default_text})".replace("%", "%%"),
            **option.kind.argument,
        )


def given_flags(args: Namespace, names: Collection[str]) -> dict[str, Any]:
    """Values of those of the named options that were given as flags."""
    return {name: value for name, value in vars(args).items() if name in names}


def add_server_flags(parser: Any) -> None:
    """Add the argument group to vLLM's parser."""
    group = parser.add_argument_group(
        title="LLaDA-V",
        description="Defaults and limits of masked-diffusion decoding. A request "
        "overrides the defaults through vllm_xargs.",
    )
    add_flags(group, SERVER_OPTIONS.values())


def merge_flags(
    args: Namespace, additional_config: Mapping[str, Any] | None
) -> dict[str, Any]:
    """``additional_config`` with the flags that were given in it.

    Raises:
        ValueError: naming an option, its value and what is allowed.
    """
    merged = dict(additional_config or {})
    if given := given_flags(args, SERVER_OPTIONS):
        known = merged.get(ADDITIONAL_CONFIG_KEY, {})
        merged[ADDITIONAL_CONFIG_KEY] = {**known, **given}
    if ADDITIONAL_CONFIG_KEY in merged:
        read_server(merged[ADDITIONAL_CONFIG_KEY])
    return merged


def refuse_flags(asked_for: dict[str, object]) -> None:
    """Raise ``ValueError`` if the user asked for what denoising cannot do.

    Every step recomputes tokens that all others attend to: a prompt can neither
    be processed in chunks nor shared as a prefix.
    """
    flags = [flag for flag, value in asked_for.items() if value]
    if flags:
        raise ValueError(f"LLaDA-V cannot be served with {', '.join(flags)}")
