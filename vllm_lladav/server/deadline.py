# SPDX-License-Identifier: Apache-2.0
"""An answer that comes too late is not worked on any longer."""

import asyncio
from collections.abc import AsyncGenerator
from http import HTTPStatus
from typing import Any

from vllm.exceptions import (
    GenerationError,
    RetryableRequestError,
    VLLMValidationError,
)

from vllm_lladav.options.kinds import OptionError
from vllm_lladav.options.options import SERVER_OPTIONS, ServerOptions
from vllm_lladav.server.draining import ShuttingDownError

NAME = "deadline_seconds"
"""Of the option, in ``vllm_xargs`` and of the server."""


class DeadlineError(GenerationError):
    """A request was given up: HTTP 504."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"{NAME} ({seconds:g}) passed before the answer was complete; "
            "it is counted from when the request reached the engine"
        )
        self.status_code = HTTPStatus.GATEWAY_TIMEOUT


def take_deadline(params: Any, server: ServerOptions) -> tuple[Any, float | None]:
    """The deadline of a request, and its parameters without it.

    Args:
        params: vLLM's sampling parameters, as the client sent them; left as they are.

    Returns:
        The parameters for the engine, and seconds; None is no deadline.

    Raises:
        VLLMValidationError: naming the option, its value and what is allowed.
    """
    seconds = server.deadline_seconds
    sent = params.extra_args or {}
    if NAME in sent:
        params = params.clone()
        params.extra_args = {key: sent[key] for key in sent if key != NAME}
        if sent[NAME] is not None:
            try:
                seconds = float(SERVER_OPTIONS[NAME].kind.check(NAME, sent[NAME]))
            except OptionError as error:
                raise VLLMValidationError(str(error), parameter=NAME) from None
    return params, seconds or None


async def answers(
    outputs: AsyncGenerator[Any, None], seconds: float | None
) -> AsyncGenerator[Any, None]:
    """``outputs`` of the engine until the deadline; whatever comes in between, the
    request is aborted then.

    Raises:
        DeadlineError: the deadline passed.
        RetryableRequestError: the server ends.
    """
    loop = asyncio.get_running_loop()
    deadline = None if seconds is None else loop.time() + seconds
    try:
        while True:
            async with asyncio.timeout_at(deadline):
                output = await anext(outputs, None)
            if output is None:
                return
            yield output
    except TimeoutError:
        assert seconds is not None
        raise DeadlineError(seconds) from None
    except ShuttingDownError as error:
        raise RetryableRequestError(error.message) from None
    finally:
        await outputs.aclose()
