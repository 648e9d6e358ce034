# SPDX-License-Identifier: Apache-2.0
"""A body that a validator stumbles over, or that is all wrong, is a bad request.

Why: validators of vLLM's requests that run before types are checked call methods of
what a client sent (``structured_outputs: 5`` has no ``get``). The ``AttributeError`` is
an HTTP 500. And every error of a body becomes a dictionary before the first ten are
reported: 300 kB of ``{}`` as messages are 1.5 million, for which the server stands
still for most of a minute.
How: wraps ``ModelField.validate`` of FastAPI. The field at fault is the one without
which nothing stumbles. Where errors are too many to be listed, those are that the
first items of every list make.
Affects: all models; the request fails either way.
Can go: when vLLM checks types first, and FastAPI bounds the errors.
"""

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
MOST_ERRORS = 1000
MOST_FIELDS = 200
FIRST_ITEMS = 5


def apply() -> None:
    from fastapi._compat import ModelField

    @wrap(ModelField, "validate")
    def validate_bounded(
        validate: Any, self: Any, value: Any, *args: Any, loc: Any = (), **kwargs: Any
    ) -> Any:
        def found(part: Any) -> Any:
            return validate(self, part, *args, loc=loc, **kwargs)

        from pydantic import ValidationError

        try:
            checked = self._type_adapter.validate_python(value, from_attributes=True)
            return checked, []
        except ValidationError as errors:
            count = errors.error_count()
            if count <= MOST_ERRORS:
                return found(value)
        except STUMBLES as error:
            return None, [_stumble(found, value, loc, error)]
        _, first = found(_shortened(value))
        message = f"Value with {count} errors"
        fault = {"type": "value_error", "loc": loc, "msg": message, "input": None}
        return None, first or [fault]


def _stumble(found: Any, body: Any, loc: Any, error: Exception) -> dict[str, Any]:
    fault = {
        "type": "value_error",
        "loc": loc,
        "msg": f"Value of a kind that is not allowed here ({error})",
        "input": body,
    }
    # Short, because it is tried as often as it has fields.
    fields = _shortened(body) if isinstance(body, dict) else {}
    for name in list(fields)[:MOST_FIELDS]:
        try:
            found({other: fields[other] for other in fields if other != name})
        except STUMBLES:
            continue
        return {**fault, "loc": (*loc, name), "input": body[name]}
    return fault


def _shortened(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _shortened(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_shortened(item) for item in value[:FIRST_ITEMS]]
    return value
