# SPDX-License-Identifier: Apache-2.0
"""Kinds of option values: what is allowed, and how it is read from a command line."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

LARGEST_INTEGER = 2**31 - 1
"""What 32-bit tensors and messages between processes hold."""


class OptionError(ValueError):
    """An option was set to what it cannot have.

    Attributes:
        name: of the option.
    """

    def __init__(self, name: str, message: str) -> None:
        self.name = name
        super().__init__(message)


def refused(name: str, allowed: str, got: object) -> OptionError:
    """The error of a value that is not allowed."""
    return OptionError(name, f"{name} must be {allowed}; got {got}")


@dataclass(frozen=True)
class Integer:
    """Whole numbers from ``least`` to ``most``; JSON's 32.0 is one."""

    argument: ClassVar[dict[str, Any]] = {"type": int}
    least: int = 1
    most: int = LARGEST_INTEGER

    def check(self, name: str, value: object) -> int:
        is_whole = isinstance(value, float) and value.is_integer()
        number: Any = int(value) if is_whole else value  # type: ignore[call-overload]
        is_integer = isinstance(number, int) and not isinstance(number, bool)
        if not is_integer or number < self.least:
            raise refused(name, f"an integer of at least {self.least}", _short(value))
        if number > self.most:
            raise refused(name, f"an integer of at most {self.most}", _short(value))
        return number


@dataclass(frozen=True)
class Number:
    """Finite numbers of a range.

    Attributes:
        range: in words.
        contains: whether a number lies in it.
    """

    argument: ClassVar[dict[str, Any]] = {"type": float}
    range: str
    contains: Callable[[float], bool]

    def check(self, name: str, value: object) -> float:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            # An integer past the floats is no finite number either.
            or not abs(value) <= sys.float_info.max
        ):
            raise refused(name, "a finite number", _short(value))
        if not self.contains(value):
            raise refused(name, self.range, _short(value))
        return float(value)


@dataclass(frozen=True)
class OneOf:
    """One of some names."""

    names: tuple[str, ...]

    @property
    def argument(self) -> dict[str, Any]:
        return {"choices": self.names}

    def check(self, name: str, value: object) -> str:
        if not isinstance(value, str) or value not in self.names:
            raise refused(name, f"one of {', '.join(self.names)}", _short(value))
        return value


@dataclass(frozen=True)
class Text:
    """Any string of bounded length: what a client sends is read while others wait.

    Attributes:
        most: characters.
        form: in words, where it has one.
        parse: raises ``ValueError`` for a string of another form.
    """

    argument: ClassVar[dict[str, Any]] = {"type": str}
    most: int
    form: str = "a string"
    parse: Callable[[str], object] = str

    def check(self, name: str, value: object) -> str:
        if not isinstance(value, str):
            raise refused(name, "a string", _short(value))
        if len(value) > self.most:
            allowed = f"a string of at most {self.most} characters"
            raise refused(name, allowed, f"{len(value)} characters")
        try:
            self.parse(value)
        except ValueError as error:
            raise refused(name, self.form, cut(str(error))) from None
        return value


Kind = Integer | Number | OneOf | Text
"""The values that an option may have.

``argument`` is ``type`` or ``choices`` for ``argparse``, which checks no bounds.
``check(name, value)`` returns the value in its proper type, or raises an
:class:`OptionError` that names the option, what is allowed, and the value.
"""


def _short(value: object) -> str:
    """A value as an error message shows it."""
    try:
        text = repr(value)
    except ValueError:  # Python prints no integer of more than some thousand digits.
        text = "an integer of thousands of digits"
    return cut(text)


def cut(text: str) -> str:
    """``text`` as an error message can show it: a client may send anything."""
    return text if len(text) <= 100 else f"{text[:97]}..."
