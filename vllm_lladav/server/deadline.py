# SPDX-License-Identifier: Apache-2.0
"""An answer that comes too late is not worked on any longer."""

import asyncio
from collections.abc import AsyncGenerator
from http import HTTPStatus
from typing import Any

from vllm.exceptions import (
    GenerationError,
    GracefulHTTPError,
    RetryableRequestError,
    VLLMValidationError,
)

from vllm_lladav.options.kinds import OptionError
from vllm_lladav.options.options import SERVER_OPTIONS, ServerOptions
from vllm_lladav.server.draining import ShuttingDownError
from vllm_lladav.server.traffic import num_slots, traffic_of

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


class TooBusyError(GracefulHTTPError):
    """A request would pass its deadline in the queue. HTTP 503, at once, so that
    clients go elsewhere, and nobody else's time is spent on it."""

    def __init__(self, seconds: float, expected: float) -> None:
        super().__init__(
            f"{NAME} ({seconds:g}) would pass before the answer: at the present load "
            f"it takes about {expected:.1f} s. Please try again later or on a "
            "different instance.",
            HTTPStatus.SERVICE_UNAVAILABLE,
        )


def check_in_time(engine: Any, seconds: float) -> None:
    """Refuse a request that would be given up in the queue or soon behind it.

    Where requests have a priority, nobody can tell who is before whom.

    Args:
        engine: vLLM's ``AsyncLLM``.
        seconds: until the deadline.

    Raises:
        TooBusyError: as the latest answers tell.
    """
    config = engine.vllm_config
    traffic = traffic_of(engine)
    # The request itself is one of those in flight.
    ahead = traffic.in_flight - 1
    if ahead < num_slots(config) or config.scheduler_config.policy != "fcfs":
        return
    expected = traffic.pace.seconds(ahead)
    if expected is not None and expected > seconds:
        raise TooBusyError(seconds, expected)


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
