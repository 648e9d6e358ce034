# SPDX-License-Identifier: Apache-2.0
"""From what a user or a client sent to checked options."""

from collections.abc import Mapping
from typing import Any

from vllm_lladav.options.kinds import OptionError, cut
from vllm_lladav.options.option import Option
from vllm_lladav.options.options import (
    PRESETS,
    REQUEST_OPTIONS,
    SERVER_OPTIONS,
    RequestOptions,
    ServerOptions,
)
from vllm_lladav.options.rules import check_plugin, check_together, unset_by

ADDITIONAL_CONFIG_KEY = "lladav"
"""Where in vLLM's ``additional_config`` the server's options travel."""


def read_server(values: Mapping[str, Any]) -> ServerOptions:
    """From ``additional_config["lladav"]``; None is as good as not set.

    Raises:
        ValueError: naming the option, its value and what is allowed.
    """
    where = f'additional_config["{ADDITIONAL_CONFIG_KEY}"]'
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be an object; got {cut(repr(values))}")
    given = _checked(values, SERVER_OPTIONS, f"option in {where}")
    preset = PRESETS[given.get("denoising", ServerOptions.denoising)]
    options = ServerOptions(**{**preset, **given}, given=frozenset(given))
    check_plugin(options, SERVER_OPTIONS, options.plugin, "--plugin {}")
    check_together(options)
    return options


def server_of(vllm_config: Any) -> ServerOptions:
    """The options that travel in vLLM's ``VllmConfig``, to every process."""
    additional = vllm_config.additional_config
    if not isinstance(additional, dict):
        return ServerOptions()
    return read_server(additional.get(ADDITIONAL_CONFIG_KEY, {}))


def read_request(server: ServerOptions, values: Mapping[str, Any]) -> RequestOptions:
    """From ``vllm_xargs``, over the preset that they name, over the server's options;
    None is as good as not sent.

    Raises:
        OptionError: naming the option, its value and what is allowed.
    """
    given = _checked(values, REQUEST_OPTIONS, "name in vllm_xargs")
    known = {name: getattr(server, name) for name in REQUEST_OPTIONS}
    preset = PRESETS[given["denoising"]] if "denoising" in given else {}
    options = RequestOptions(
        **{**known, **preset, **unset_by(given), **given}, given=frozenset(given)
    )
    needed = "a server that runs with --plugin {}"
    check_plugin(options, REQUEST_OPTIONS, server.plugin, needed)
    check_together(options)
    return options


def _checked(
    values: Mapping[str, Any], known: Mapping[str, Option], what: str
) -> dict[str, Any]:
    """``values`` that are set, each in its proper type."""
    given = {name: value for name, value in values.items() if value is not None}
    if unknown := [name for name in given if name not in known]:
        names = cut(", ".join(map(str, unknown)))
        raise OptionError(
            unknown[0], f"unknown {what}: {names}; known are {', '.join(known)}"
        )
    return {name: known[name].kind.check(name, value) for name, value in given.items()}
