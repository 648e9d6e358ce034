# SPDX-License-Identifier: Apache-2.0
"""How an option is declared: a field of a dataclass, with what is to be known of it."""

from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any

from vllm_lladav.options.kinds import Kind


@dataclass(frozen=True, kw_only=True)
class Option:
    """What is declared of an option.

    Attributes:
        name: of the attribute, of the key in ``additional_config`` and
            ``vllm_xargs``, and, with dashes, of the flag.
        kind: the values that it may have.
        help: what it does, in one line.
        default: None if it follows from something else.
        default_text: the default in words, if its value does not say it.
        is_flag: whether a server has a default for it.
        in_request: whether a request may set it.
        plugin: that the server must run with; None for any.
        label: how a value is called in tables and plots, as a format.
    """

    name: str
    kind: Kind
    help: str
    default: Any
    default_text: str
    is_flag: bool = True
    in_request: bool = True
    plugin: str | None = None
    label: str = "{}"

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def option(default: Any, kind: Kind, help: str, **others: Any) -> Any:
    """A field that declares an :class:`Option`; the class gives it its name."""
    default_text = f"{default:g}" if isinstance(default, float) else str(default)
    declared = {"kind": kind, "help": help, "default_text": default_text, **others}
    return field(default=default, metadata=declared)


@cache
def options_of(holder: type) -> dict[str, Option]:
    """The options among the fields of a dataclass, by name; not to be changed."""
    return {
        item.name: Option(name=item.name, default=item.default, **item.metadata)
        for item in fields(holder)
        if item.metadata
    }
