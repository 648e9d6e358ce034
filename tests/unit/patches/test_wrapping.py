# SPDX-License-Identifier: Apache-2.0
"""The helper of the patches: wraps once, whatever kind of function it is."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_lladav.patches.wrapping import wrap


class Owner:
    def method(self, number: int) -> Any:
        return self, number

    @staticmethod
    def static(number: int) -> Any:
        return number

    @classmethod
    def of(cls, number: int) -> Any:
        return cls, number


class Heir(Owner):
    pass


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = {name: vars(Owner)[name] for name in ("method", "static", "of")}
    yield
    for name, value in before.items():
        setattr(Owner, name, value)


def apply(owner: Any, name: str) -> None:
    @wrap(owner, name)
    def doubled(original: Any, *args: Any, number: int) -> Any:
        return "wrapped", original(*args, 2 * number)


def test_methods():
    owner = Owner()
    apply(Owner, "method")
    assert owner.method(number=3) == ("wrapped", (owner, 6))
    assert Owner.method.__name__ == "method"


def test_static_methods_stay_static():
    apply(Owner, "static")
    assert Owner.static(number=3) == Owner().static(number=3) == ("wrapped", 6)


def test_class_methods_get_the_class():
    apply(Owner, "of")
    assert Owner.of(number=3) == ("wrapped", (Owner, 6))
    assert Heir.of(number=3) == ("wrapped", (Heir, 6))


def test_functions_of_a_module():
    module = SimpleNamespace(function=lambda number: number)
    apply(module, "function")
    assert module.function(number=3) == ("wrapped", 6)


@pytest.mark.parametrize("name", ["method", "static", "of"])
def test_a_second_time_changes_nothing(name: str):
    original = vars(Owner)[name]
    apply(Owner, name)
    once = vars(Owner)[name]
    apply(Owner, name)
    assert vars(Owner)[name] is once
    wrapped = getattr(once, "__func__", once).__wrapped__
    assert wrapped is getattr(original, "__func__", original)


def test_an_heir_is_wrapped_alone():
    apply(Heir, "static")
    assert Heir.static(number=3) == ("wrapped", 6)
    assert Owner.static(number=3) == 3
