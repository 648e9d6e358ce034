# SPDX-License-Identifier: Apache-2.0
"""Errors of bodies and their messages are made in a bounded time."""

import time
from typing import Any

import pytest
from fastapi._compat import ModelField
from pydantic import BaseModel, model_validator
from pydantic.fields import FieldInfo
from vllm.entrypoints.serve.exception_handling import error_response
from vllm.entrypoints.serve.exception_handling.handlers import http, validation

from vllm_lladav.patches import body_validation, error_messages


@pytest.fixture(autouse=True)
def patched() -> None:
    error_messages.apply()
    body_validation.apply()


@pytest.mark.parametrize("module", [error_response, http, validation])
@pytest.mark.parametrize("text", ["/a" * 100_000, ("/a" * 90 + " ") * 10_000])
def test_message_of_paths(module: Any, text: str) -> None:
    begin = time.monotonic()
    assert module.sanitize_message(f"no model {text}").startswith("no model")
    assert time.monotonic() - begin < 2


def test_other_messages_are_left_alone() -> None:
    message = "steps must be 4 (not /v1/x) " * 100
    assert error_response.sanitize_message(message) == message.strip()
    assert error_response.sanitize_message("no /home/user/x.py") == "no <path>"


class Inner(BaseModel):
    number: int


class Body(BaseModel):
    name: str = ""
    items: list[Inner] = []
    options: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def stumble(cls, data: Any) -> Any:
        if "name" not in data:
            raise KeyError("name")
        if data.get("options"):
            data["options"].get("x")
        return data


FIELD = ModelField(field_info=FieldInfo(annotation=Body), name="request")


def test_the_field_that_a_validator_stumbles_over_is_named() -> None:
    found, (error,) = FIELD.validate(
        {"name": "x", "items": [], "options": 5}, loc=("body",)
    )
    assert found is None
    assert error["loc"] == ("body", "options")
    assert error["input"] == 5


def test_no_object_at_all() -> None:
    found, (error,) = FIELD.validate(5, loc=("body",))
    assert found is None
    assert error["loc"] == ("body",)


def test_few_errors_are_all_told() -> None:
    _, errors = FIELD.validate(
        {"name": "x", "items": [{}, {"number": 1}, {}]}, loc=("body",)
    )
    assert [error["loc"][:3] for error in errors] == [
        ("body", "items", 0),
        ("body", "items", 2),
    ]


class Wide(BaseModel):
    """Each item that is none of its forms makes three errors."""

    items: list[dict[str, int] | Inner | list[int]] = []


WIDE = ModelField(field_info=FieldInfo(annotation=Wide), name="request")


def test_of_many_errors_the_first_are_told() -> None:
    good, bad = {"number": 1}, {"number": "x"}
    begin = time.monotonic()
    _, errors = WIDE.validate({"items": [good] * 100 + [bad] * 100_000}, loc=("body",))
    assert time.monotonic() - begin < 5
    assert len(errors) == 3 * body_validation.FEW_ITEMS
    assert errors[0]["loc"][:3] == ("body", "items", 100)


def test_plain_values_and_inner_lists() -> None:
    begin = time.monotonic()
    _, errors = WIDE.validate({"items": [5] * 1_000_000}, loc=("body",))
    assert len(errors) == 3 * body_validation.FEW_VALUES
    _, errors = WIDE.validate({"items": [[], ["x"] * 1_000_000]}, loc=("body",))
    assert len(errors) < 1000
    assert errors[-1]["loc"] == ("body", "items", 1, "list[int]", 199)
    assert time.monotonic() - begin < 10
    found, errors = WIDE.validate({"items": [[], [1] * 100_000]}, loc=("body",))
    assert len(found.items[1]) == 100_000
    assert errors == []


def test_good_bodies() -> None:
    found, errors = FIELD.validate(
        {"name": "x", "items": [{"number": 1}]}, loc=("body",)
    )
    assert found == Body(name="x", items=[Inner(number=1)])
    assert errors == []
