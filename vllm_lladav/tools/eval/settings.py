# SPDX-License-Identifier: Apache-2.0
"""The settings of a sweep: what is sent with every request of a run."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_lladav.options.kinds import OptionError, Text
from vllm_lladav.options.options import REQUEST_OPTIONS, ServerOptions
from vllm_lladav.options.reading import read_request, read_server
from vllm_lladav.options.rules import matters
from vllm_lladav.pruning.policies import policy_of

_FIXED = ("gen_length", "denoising", "generation_suffix")
"""The first is the same in all settings; the second stands for others; the third is
no matter of accuracy."""

PARAMETERS = {
    name: option for name, option in REQUEST_OPTIONS.items() if name not in _FIXED
}
"""Options that a setting may have."""

AXES = {
    name: option
    for name, option in PARAMETERS.items()
    # Blocks are those of all requests, and the list of stages has commas.
    if name != "block_length" and not isinstance(option.kind, Text)
}
"""Options that a sweep goes through."""

BASELINE = "exact"
"""Label of the setting that all others are compared with."""

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
    kind, text = PARAMETERS[name].kind, text.strip()
    if not text:
        raise ValueError(f"{name} has an empty value")
    convert = kind.argument.get("type", str)
    try:
        value = convert(text)
    except ValueError:
        what = {int: "an integer", float: "a number"}[convert]
        raise OptionError(name, f"{name} must be {what}: {text!r}") from None
    return kind.check(name, value)


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
        label = BASELINE if number == 0 else named.get(args) or _label(lengths, args)
        settings.append(Setting(label, args))
    labels = [setting.label for setting in settings]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ValueError(f"two settings are called {twice[0]!r}")
    return tuple(settings)


def _completed(lengths: Lengths, values: Values) -> tuple[tuple[str, Any], ...]:
    """Everything that a request must say to mean the same on every server, and nothing
    that changes nothing: equal meanings are equal."""
    server = _exact_server(lengths)
    options = read_request(server, {"gen_length": lengths.gen_length, **values})
    args = {
        name: getattr(options, name)
        for name in ("gen_length", *PARAMETERS)
        if matters(name, options)
    }
    if "prune_queries" in args and args["prune_queries"] is None:
        args["prune_queries"] = policy_of(options.prune_policy).default_queries
    if args["steps"] is None:
        args["steps"] = lengths.gen_length
    # What is left depends on the model.
    return tuple(sorted((n, v) for n, v in args.items() if v is not None))


def _exact_server(lengths: Lengths) -> ServerOptions:
    """One that prunes nothing unless a request says so."""
    longest = max(ServerOptions.max_gen_length, lengths.gen_length)
    return read_server(
        {
            "plugin": "pruning",
            "prune_rate": 0.0,
            "max_gen_length": longest,
            "block_length": lengths.block_length,
        }
    )


def _label(lengths: Lengths, args: tuple[tuple[str, Any], ...]) -> str:
    """What differs from the exact setting."""
    values = dict(args)
    usual = {
        **{name: option.default for name, option in PARAMETERS.items()},
        "block_length": lengths.block_length,
        "steps": lengths.gen_length,
    }
    pruning = _pruning_label(values)
    parts = [pruning] if pruning else []
    for name, option in PARAMETERS.items():
        is_unusual = values.get(name, usual[name]) != usual[name]
        if is_unusual and not name.startswith("prune_"):
            parts.append(option.label.format(values[name]))
    return " + ".join(parts)


def _pruning_label(values: Values) -> str:
    """Policy and cuts always, what else differs from the usual."""
    if not values.get("prune_rate") and "prune_stages" not in values:
        return ""
    policy = values["prune_policy"]
    cuts = values.get("prune_stages")
    if cuts is None:
        cuts = f"{values['prune_rate']:g}"
    usual = {
        **{name: option.default for name, option in PARAMETERS.items()},
        "prune_queries": policy_of(policy).default_queries,
        # Adaptive pruning is nothing without it.
        "prune_tau": None,
    }
    shown = ("prune_rate", "prune_stages", "prune_policy")
    others = [
        option.label.format(values[name])
        for name, option in PARAMETERS.items()
        if name.startswith("prune_")
        and name not in shown
        and values.get(name, usual[name]) != usual[name]
    ]
    return " ".join([policy, cuts, *others]).replace(" @", "@")
