# SPDX-License-Identifier: Apache-2.0
"""The settings of a sweep: what is sent with every request of a run."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from vllm_lladav.options.server import ServerConfig
from vllm_lladav.pruning.policies import POLICIES, policy_of

AXES: dict[str, type] = {
    "prune_rate": float,
    "prune_layer": int,
    "prune_policy": str,
    "prune_queries": str,
    "prune_positions": str,
    "cache": str,
    "refresh_interval": int,
    "confidence_threshold": float,
    "confidence_factor": float,
    "cfg_scale": float,
    "steps": int,
}
"""Parameters of a request that a sweep goes through, and the type of their values."""

PARAMETERS: dict[str, type] = {
    **AXES,
    "prune_stages": str,
    "prune_min_visual_tokens": int,
    "prune_tau": float,
    "remasking": str,
    "block_length": int,
}
"""Parameters that a setting may have."""

BASELINE = "exact"
"""Label of the setting that all others are compared with."""

_DEFAULTS = ServerConfig()
_KEY_VALUE = re.compile(r",(?=\s*[a-z_]+\s*=)")

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """What is sent with every request of one run.

    Attributes:
        label: short, for tables and plots.
        args: names and values of ``vllm_xargs``, by name.
    """

    label: str
    args: tuple[tuple[str, Any], ...]

    @property
    def xargs(self) -> dict[str, Any]:
        return dict(self.args)

    def get(self, name: str) -> Any:
        """None if it is not sent."""
        return self.xargs.get(name)


@dataclass(frozen=True)
class Lengths:
    """What all settings share, in tokens."""

    gen_length: int
    block_length: int


def parse_axis(name: str, text: str) -> tuple[Any, ...]:
    """Values of a comma list.

    Raises:
        ValueError: naming the parameter and the value.
    """
    return tuple(_parse_value(name, part) for part in text.split(","))


def parse_setting(text: str) -> tuple[str | None, dict[str, Any]]:
    """Read ``[name:]parameter=value,...``, such as ``fast: cache=dual,prune_rate=0.5``.

    Returns:
        The name, if there is one, and the values.

    Raises:
        ValueError: saying what is wrong.
    """
    head, colon, rest = text.partition(":")
    # The stages of pruning have colons, too.
    name = head.strip() if colon and "=" not in head else None
    values: dict[str, Any] = {}
    for part in _KEY_VALUE.split(text if name is None else rest):
        key, equals, value = part.partition("=")
        key = key.strip()
        if not equals:
            raise ValueError(f"setting {text!r}: {part.strip()!r} is not name=value")
        if key not in PARAMETERS:
            raise ValueError(
                f"setting {text!r}: unknown parameter {key}; known are "
                f"{', '.join(PARAMETERS)}"
            )
        if key in values:
            raise ValueError(f"setting {text!r}: {key} stands twice")
        values[key] = _parse_value(key, value)
    return name or None, values


def _parse_value(name: str, text: str) -> Any:
    kind, text = PARAMETERS[name], text.strip()
    if not text:
        raise ValueError(f"{name} has an empty value")
    try:
        return kind(text)
    except ValueError:
        what = {int: "an integer", float: "a number"}[kind]
        raise ValueError(f"{name} must be {what}: {text!r}") from None


def all_combinations(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Values of every setting of a sweep; none if there are no axes."""
    if not axes:
        return []
    return [
        dict(zip(axes, values, strict=True))
        for values in itertools.product(*axes.values())
    ]


def plan_sweep(
    lengths: Lengths,
    combinations: Iterable[Values],
    explicit: Iterable[tuple[str | None, Values]] = (),
) -> tuple[Setting, ...]:
    """The settings that are run: the exact one first, each meaning once.

    A name that was given to a meaning is its label, wherever it comes first.

    Raises:
        ValueError: for values that no server takes, and for a name that stands for
            two things.
    """
    named = {_completed(lengths, values): name for name, values in explicit if name}
    meanings = [
        _completed(lengths, values)
        for values in ({}, *combinations, *(values for _, values in explicit))
    ]
    settings = []
    for number, args in enumerate(dict.fromkeys(meanings)):
        _check(dict(args))
        label = BASELINE if number == 0 else named.get(args) or _label(lengths, args)
        settings.append(Setting(label, args))
    labels = [setting.label for setting in settings]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ValueError(f"two settings are called {twice[0]!r}")
    return tuple(settings)


def _completed(lengths: Lengths, values: Values) -> tuple[tuple[str, Any], ...]:
    """Everything that a request must say to mean the same on every server, and nothing
    that changes nothing: equal meanings are equal."""
    args: dict[str, Any] = {
        "gen_length": lengths.gen_length,
        "block_length": lengths.block_length,
        "steps": lengths.gen_length,
        "remasking": _DEFAULTS.remasking,
        "cache": "none",
        "confidence_threshold": 0.0,
        "confidence_factor": 0.0,
        "cfg_scale": 0.0,
        **values,
    }
    if args["remasking"] == "random":
        # A server does not take them together.
        for name in ("confidence_threshold", "confidence_factor"):
            if not args[name]:
                del args[name]
    if args["cache"] == "none":
        args.pop("refresh_interval", None)
    else:
        args.setdefault("refresh_interval", _DEFAULTS.refresh_interval)
    return tuple(sorted(_complete_pruning(args).items()))


def _complete_pruning(args: dict[str, Any]) -> dict[str, Any]:
    if "prune_stages" not in args:
        args.setdefault("prune_rate", 0.0)
        if args["prune_rate"] == 0:
            args = {n: v for n, v in args.items() if not n.startswith("prune_")}
            return {**args, "prune_rate": 0.0}
    for name in ("prune_policy", "prune_positions", "prune_min_visual_tokens"):
        args.setdefault(name, getattr(_DEFAULTS, name))
    if args["prune_policy"] not in POLICIES:
        return args  # Refused by _check.
    policy = policy_of(args["prune_policy"])
    if policy.uses_queries:
        args.setdefault("prune_queries", policy.default_queries)
    else:
        args.pop("prune_queries", None)
    if policy.is_adaptive:
        args.setdefault("prune_tau", _DEFAULTS.prune_tau)
    else:
        args.pop("prune_tau", None)
    return args


def _check(args: Values) -> None:
    """What can be checked without a model, as the server checks its own flags."""
    known = {field.name for field in fields(ServerConfig)}
    values = {name: value for name, value in args.items() if name in known}
    longest = max(_DEFAULTS.max_gen_length, args["gen_length"])
    ServerConfig.from_values({"plugin": "pruning", "max_gen_length": longest, **values})


def _label(lengths: Lengths, args: tuple[tuple[str, Any], ...]) -> str:
    """What differs from the exact setting."""
    values = dict(args)
    pruning = _pruning_label(values)
    parts = [pruning] if pruning else []
    if values["cache"] != "none":
        interval = values["refresh_interval"]
        is_default = interval == _DEFAULTS.refresh_interval
        parts.append(values["cache"] + ("" if is_default else f"/{interval}"))
    if values.get("confidence_threshold"):
        parts.append(f"c>={values['confidence_threshold']:g}")
    if values.get("confidence_factor"):
        parts.append(f"factor {values['confidence_factor']:g}")
    if values["cfg_scale"]:
        parts.append(f"cfg {values['cfg_scale']:g}")
    if values["steps"] != lengths.gen_length:
        parts.append(f"{values['steps']} steps")
    if values["block_length"] != lengths.block_length:
        parts.append(f"blocks of {values['block_length']}")
    if values["remasking"] != _DEFAULTS.remasking:
        parts.append(values["remasking"] + " remasking")
    return " + ".join(parts)


def _pruning_label(values: Values) -> str:
    if not values.get("prune_rate") and "prune_stages" not in values:
        return ""
    policy = values["prune_policy"]
    if "prune_stages" in values:
        parts = [policy, values["prune_stages"]]
    else:
        layer = values.get("prune_layer")
        cut = f"{values['prune_rate']:g}" + (f"@{layer}" if layer else "")
        parts = [policy, cut]
    usual = policy_of(policy).default_queries
    if values.get("prune_queries", usual) != usual:
        parts.append(values["prune_queries"])
    if values["prune_positions"] != _DEFAULTS.prune_positions:
        parts.append(values["prune_positions"])
    if "prune_tau" in values:
        parts.append(f"tau {values['prune_tau']:g}")
    if values["prune_min_visual_tokens"]:
        parts.append(f"from {values['prune_min_visual_tokens']} tokens")
    return " ".join(parts)
