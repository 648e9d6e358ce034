# SPDX-License-Identifier: Apache-2.0
"""The JSON of a request, held to what a message to the engine can hold.

It is read while others wait, so what a body without fault costs beyond ``json.loads``
is a call for every integer and a look at its lists.
"""

import json
from collections.abc import Iterator
from typing import Any

from vllm_lladav.options.kinds import cut

LEAST_INTEGER, MOST_INTEGER = -(2**63), 2**64 - 1
"""What msgpack holds."""

Path = tuple[str | int, ...]

DEEPEST = 100
"""Levels of lists and objects in a body, itself included."""

MOST_CONTAINERS = 2000
"""Lists and objects in a body. Each that fits none of the forms which its place allows
is an error for every form, 233 of them in ``/v1/responses``: with 50,000, the memory of
a large machine does not hold them. Items of a list in an object (the parts of a
message) count, too."""

_LONGEST_NUMBER = 40
"""Digits of an integer that are looked at: it is too large with fewer already."""


class BodyError(ValueError):
    """A body is not what a request can be; the message names the field."""


def read_body(body: bytes) -> Any:
    """An object as Python reads it, NaN and infinity included.

    Raises:
        BodyError: for text that is no Unicode, integers past 64 bits, too deep or too
            many lists and objects, and JSON that is no object.
        json.JSONDecodeError: for what is no JSON.
    """
    try:
        text = body.decode(json.detect_encoding(body))
    except UnicodeDecodeError as error:
        raise BodyError(
            f"the body must be JSON in UTF-8; it is not ({error})"
        ) from None
    is_long = False

    def read_integer(digits: str) -> int:
        nonlocal is_long
        number = int(digits[:_LONGEST_NUMBER])
        is_long = is_long or not LEAST_INTEGER <= number <= MOST_INTEGER
        return number

    try:
        value = json.loads(text, parse_int=read_integer)
    except RecursionError:
        raise _too_deep() from None
    if not isinstance(value, dict):
        long = "a list" if isinstance(value, list) else "a string"
        kind = long if isinstance(value, list | str) else cut(repr(value))
        raise BodyError(f"the body must be a JSON object; got {kind}")
    is_odd = is_long or "\\ud" in text or "\\uD" in text
    if is_odd or text.count("[") + text.count("{") > DEEPEST or _is_long_list(text):
        _check(value, is_odd)
    return value


def _is_long_list(text: str) -> bool:
    return text.count(",") >= MOST_CONTAINERS


def _check(body: dict[str, Any], is_odd: bool) -> None:
    """Args:
    is_odd: whether plain values may be at fault, too.
    """
    num_containers = 0
    for path, value in _walk(body, is_odd):
        if isinstance(value, list | dict):
            num_containers += 1
            if isinstance(value, list) and _is_in_an_object(path):
                num_containers += len(value)
            if len(path) >= DEEPEST:
                raise _too_deep()
            if num_containers > MOST_CONTAINERS:
                raise BodyError(
                    f"the body must have at most {MOST_CONTAINERS} lists, objects and "
                    f"items of lists in objects; {_name(path)} has the last one"
                )
        elif isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise BodyError(
                    f"{_name(path)} must be Unicode text; "
                    f"character {error.start} is half of a surrogate pair"
                ) from None
        elif isinstance(value, int) and not LEAST_INTEGER <= value <= MOST_INTEGER:
            raise BodyError(
                f"{_name(path)} must be an integer between -2**63 and 2**64 - 1; "
                f"got {value}"
            )


def _is_in_an_object(path: Path) -> bool:
    """Whether what stands there is in an object that is not the body."""
    return sum(isinstance(key, str) for key in path) > 1


def _walk(body: dict[str, Any], is_odd: bool) -> Iterator[tuple[Path, Any]]:
    """Every list and object with its path; plain values, too, if they may be at fault,
    and names as values of what they are in."""
    waiting: list[tuple[Path, Any]] = [((), body)]
    while waiting:
        path, value = waiting.pop()
        yield path, value
        if isinstance(value, dict):
            waiting += [
                ((*path, name), item)
                for name, item in value.items()
                if is_odd or isinstance(item, list | dict)
            ]
            waiting += [(path, name) for name in value] if is_odd else []
        elif isinstance(value, list):
            waiting += [
                ((*path, index), item)
                for index, item in enumerate(value)
                if is_odd or isinstance(item, list | dict)
            ]


def _name(path: Path) -> str:
    # ``ascii`` rather than the text: it may be the one that cannot be encoded.
    parts = [part if str(part).isidentifier() else ascii(part) for part in path]
    return cut(".".join(map(str, parts))) if parts else "a name in the body"


def _too_deep() -> BodyError:
    return BodyError(f"the body must be nested at most {DEEPEST} levels deep")
