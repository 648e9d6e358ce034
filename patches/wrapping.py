# SPDX-License-Identifier: Apache-2.0
"""How a patch wraps a function of vLLM: once, and with the original in reach."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

MARK = "lladav"
"""Attribute of our wrappers."""


def wrap(owner: Any, name: str) -> Callable[[Callable[..., Any]], None]:
    """Decorator of the function that takes the place of ``owner.name``.

    It is called with the original in front of the arguments, which have the names
    that vLLM gives them: callers use these. Static and class methods stay what they
    are. A function that is wrapped already is left alone.

    Args:
        owner: class or module.
    """

    def replace(wrapper: Callable[..., Any]) -> None:
        found = inspect.getattr_static(owner, name)
        original = getattr(found, "__func__", found)
        if hasattr(original, MARK):
            return

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return wrapper(original, *args, **kwargs)

        setattr(wrapped, MARK, True)
        is_method = isinstance(found, (staticmethod, classmethod))
        setattr(owner, name, type(found)(wrapped) if is_method else wrapped)

    return replace
