# SPDX-License-Identifier: Apache-2.0
"""The settings of a sweep: what is sent with every request of a run."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_lladav.options.kinds import OptionError, Text
from vllm_lladav.options.options import REQUEST_OPTIONS
from vllm_lladav.options.reading import read_request, read_server
from vllm_lladav.options.rules import matters
from vllm_lladav.pruning.policies import policy_of

_FIXED = ("gen_length", "denoising", "generation_suffix", "stop_search")
"""The first is the same in all settings; the second stands for others; the third
and fourth are no matter of accuracy."""

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

_SERVER = read_server({"plugin": "pruning", "prune_rate": 0.0})
"""One that prunes nothing unless a request says so."""

_KEY_VALUE = re.compile(r",(?=\s*[a-z_]+\s*=)")

Values = Mapping[str, Any]
Args = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Setting:
    """What is sent with every request of one run.

    Attributes:
        label: short, for tables and plots.
        args: names and values of ``vllm_xargs``, by name.
    """

    label: str
    args: Args

    @property
    def xargs(self) -> dict[str, Any]:
        return dict(self.args)


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
    """Values of every setting of a sweep."""
    combinations = itertools.product(*axes.values())
    return [dict(zip(axes, values, strict=True)) for values in combinations]


def plan_sweep(
    lengths: Values,
    combinations: Iterable[Values],
    explicit: Iterable[tuple[str | None, Values]] = (),
) -> tuple[Setting, ...]:
    """The settings that are run: the exact one first, each meaning once.

    A name that was given to a meaning is its label, wherever it comes first.

    Args:
        lengths: what all settings share: ``gen_length``, and the ``block_length`` of
            those that have none, in tokens.

    Raises:
        ValueError: for values that no server takes, and for a name that stands for
            two things.
    """
    shared = {**lengths, "steps": lengths["gen_length"]}
    exact = _meaning(shared)
    names: dict[Args, str | None] = {exact: None}
    for name, values in (*((None, values) for values in combinations), *explicit):
        args = _meaning({**shared, **values})
        names[args] = name or names.get(args)
    names[exact] = BASELINE
    settings = tuple(
        Setting(name or _label(dict(args), dict(exact)), args)
        for args, name in names.items()
    )
    (label, times), *_ = Counter(s.label for s in settings).most_common(1)
    if times > 1:
        raise ValueError(f"two settings are called {label!r}")
    return settings


def _meaning(values: Values) -> Args:
    """Everything that a request must say to mean the same on every server, and nothing
    that changes nothing: equal meanings are equal."""
    options = read_request(_SERVER, values)
    args = {
        name: getattr(options, name)
        for name in ("gen_length", *PARAMETERS)
        if matters(name, options)
    }
    if "prune_queries" in args and args["prune_queries"] is None:
        args["prune_queries"] = policy_of(options.prune_policy).default_queries
    # What is left depends on the model.
    return tuple(sorted((n, v) for n, v in args.items() if v is not None))


def _label(values: dict[str, Any], exact: dict[str, Any]) -> str:
    """What differs from the exact setting; policy and cuts always and first."""
    usual = {name: option.default for name, option in PARAMETERS.items()} | exact
    policy = values.get("prune_policy")
    if policy is not None:
        usual["prune_queries"] = policy_of(policy).default_queries
        # Adaptive pruning is nothing without it.
        usual["prune_tau"] = None
    texts = {
        name: option.label.format(values[name])
        for name, option in PARAMETERS.items()
        if name not in ("prune_policy", "prune_rate", "prune_stages")
        and values.get(name, usual[name]) != usual[name]
    }
    parts = [text for name, text in texts.items() if not name.startswith("prune_")]
    if policy is not None:
        cuts = values.get("prune_stages") or f"{values['prune_rate']:g}"
        others = [text for name, text in texts.items() if name.startswith("prune_")]
        parts.insert(0, " ".join([policy, cuts, *others]).replace(" @", "@"))
    return " + ".join(parts)
