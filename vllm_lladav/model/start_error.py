# SPDX-License-Identifier: Apache-2.0
"""What cannot be served, found before anything is loaded."""

from collections.abc import Iterator
from contextlib import contextmanager


class StartError(ValueError):
    """The engine cannot start with what the user asked for.

    Its message is all there is to say: ``vllm serve`` ends with it as the last line,
    without a traceback (``patches/start_errors.py``).
    """


@contextmanager
def as_start_error() -> Iterator[None]:
    """What a ``ValueError`` says in the block is what a :class:`StartError` says."""
    try:
        yield
    except ValueError as error:
        raise StartError(str(error)) from None
