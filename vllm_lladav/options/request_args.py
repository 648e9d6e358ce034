# SPDX-License-Identifier: Apache-2.0
"""Typed access to ``vllm_xargs``, with errors that name parameter and value."""

import math
from collections.abc import Sequence
from typing import Any

from vllm.exceptions import VLLMValidationError


def invalid(parameter: str, value: object, allowed: str) -> VLLMValidationError:
    return VLLMValidationError(
        f"{parameter} must be {allowed}; got {value}", parameter=parameter
    )


class RequestArgs:
    """What a client sent beside the OpenAI fields; null counts as not sent."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = {k: v for k, v in values.items() if v is not None}

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def refuse_unknown(self, known: Sequence[str]) -> None:
        for name in self._values:
            if name not in known:
                raise VLLMValidationError(
                    f"unknown name in vllm_xargs: {name}; known are {', '.join(known)}",
                    parameter=name,
                )

    def integer(self, name: str, default: int, least: int = 1) -> int:
        value = self._values.get(name, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise invalid(name, repr(value), f"an integer of at least {least}")
        return int(value)

    def number(self, name: str, default: float) -> float:
        value = self._values.get(name, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise invalid(name, repr(value), "a finite number")
        return float(value)

    def string(self, name: str, default: str) -> str:
        value = self._values.get(name, default)
        if not isinstance(value, str):
            raise invalid(name, repr(value), "a string")
        return value

    def one_of(self, name: str, allowed: tuple[str, ...], default: str) -> str:
        value = self._values.get(name, default)
        if value not in allowed:
            raise invalid(name, repr(value), f"one of {', '.join(allowed)}")
        return str(value)
