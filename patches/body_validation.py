# SPDX-License-Identifier: Apache-2.0
"""A body that a validator stumbles over, or that is all wrong, is a bad request.

Why: validators of vLLM's requests that run before types are checked call methods of
what a client sent (``structured_outputs: 5`` has no ``get``). The ``AttributeError`` is
an HTTP 500. And every error of a body becomes a dictionary before the first ten are
reported: 300 kB of ``{}`` as messages are 1.5 million, for which the server stands
still for most of a minute.
How: wraps ``ModelField.validate`` of FastAPI. The field at fault is the one without
which nothing stumbles. Long lists are validated some items at a time
before, and where some make many errors, these are all that is reported.
Affects: all models; the request fails either way.
Can go: when vLLM checks types first, and FastAPI bounds the errors.
"""

from collections.abc import Iterator
from typing import Any

from vllm_lladav.patches.wrapping import wrap

STUMBLES = (
    AttributeError,
    AssertionError,
    LookupError,
    OverflowError,
    RecursionError,
    TypeError,
)
MANY_ERRORS = 20
FEW_ITEMS = 20
FEW_VALUES = 200
"""Items of a part: lists and objects, of which each may make hundreds of errors, or
nothing but plain values."""

Path = tuple[str | int, ...]
MOST_FIELDS = 200


def apply() -> None:
    from fastapi._compat import ModelField
    from pydantic import ValidationError

    @wrap(ModelField, "validate")
    def validate_bounded(
        validate: Any, self: Any, value: Any, *args: Any, loc: Any = (), **kwargs: Any
    ) -> Any:
        def found(part: Any) -> Any:
            return validate(self, part, *args, loc=loc, **kwargs)

        def count(part: Any) -> int:
            try:
                self._type_adapter.validate_python(part, from_attributes=True)
            except ValidationError as errors:
                return errors.error_count()
            return 0

        try:
            for part, places in _parts(value):
                if count(part) > MANY_ERRORS:
                    return None, [_placed(fault, places) for fault in found(part)[1]]
            return found(value)
        except STUMBLES as error:
            return None, [_stumble(found, value, loc, error)]


def _parts(body: Any) -> Iterator[tuple[Any, list[int]]]:
    """The body with some items of a long list, list after list; and the places of these
    and of what they are in, from the outside."""
    for path, items in _long_lists(body, ()):
        outer = [key for key in path if isinstance(key, int)]
        is_plain = not any(isinstance(item, dict | list) for item in items)
        size = FEW_VALUES if is_plain else FEW_ITEMS
        for begin in range(0, len(items), size):
            part = _with(body, path, items[begin : begin + size])
            yield part, [*outer, begin]


def _long_lists(value: Any, path: Path) -> Iterator[tuple[Path, list[Any]]]:
    if not isinstance(value, dict | list):
        return
    if isinstance(value, list) and len(value) > FEW_ITEMS:
        yield path, value
    items: Any = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if isinstance(item, dict | list):
            yield from _long_lists(item, (*path, key))


def _with(value: Any, path: Path, items: list[Any]) -> Any:
    """A short form of ``value`` in which ``items`` are what stands at a path."""
    if not path:
        return items
    inner = _with(value[path[0]], path[1:], items)
    if isinstance(value, dict):
        return {**_shortened(value), path[0]: inner}
    return [inner]


def _placed(fault: dict[str, Any], places: list[int]) -> dict[str, Any]:
    """An error of a part with its place in the body."""
    # Of the lists on the way, the part has one item, and of the last one a stretch.
    first = iter(places)
    loc = [
        part + next(first, 0) if isinstance(part, int) else part
        for part in fault["loc"]
    ]
    return {**fault, "loc": tuple(loc)}


def _stumble(found: Any, body: Any, loc: Any, error: Exception) -> dict[str, Any]:
    fault = {
        "type": "value_error",
        "loc": loc,
        "msg": f"Value of a kind that is not allowed here ({error})",
        "input": body,
    }
    # Short, because it is tried as often as it has fields.
    fields = _shortened(body) if isinstance(body, dict) else {}
    required = None
    for name in list(fields)[:MOST_FIELDS]:
        try:
            _, faults = found({key: fields[key] for key in fields if key != name})
        except Exception:  # Stumbles over another one, or misses this one first.
            continue
        if not any(other["loc"] == (*loc, name) for other in faults):
            return {**fault, "loc": (*loc, name), "input": body[name]}
        # Without it nothing else may have been looked at.
        required = required or name
    if required is None:
        return fault
    return {**fault, "loc": (*loc, required), "input": body[required]}


def _shortened(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _shortened(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_shortened(item) for item in value[:FEW_ITEMS]]
    return value
