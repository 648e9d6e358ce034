# SPDX-License-Identifier: Apache-2.0
"""How a server ends: every request gets an answer, and then it is gone.

New requests are refused with a 503. Those that run may finish for as long as
``--shutdown-timeout`` says, and are failed with a 503 then.
"""

import time
from http import HTTPStatus
from typing import Any

from vllm.exceptions import GracefulHTTPError
from vllm.logger import init_logger

from vllm_lladav.server.traffic import traffic_of

logger = init_logger(__name__)

LAST_WORDS_S = 5.0
"""For answers to reach their clients once their requests have been failed."""
ENGINE_EXIT_S = 10.0
"""For the engine to end by itself, its last step included. vLLM kills it then."""
CONNECTIONS_S = 5
"""For open connections to close. They are cut then."""

_POLL_S = 0.05


class ShuttingDownError(GracefulHTTPError):
    """The server ends. HTTP 503, so that clients go elsewhere or try again."""

    def __init__(self) -> None:
        super().__init__(
            "The server is shutting down. Please try again later or on a different "
            "instance.",
            HTTPStatus.SERVICE_UNAVAILABLE,
        )


def drain(engine: Any, timeout_s: float) -> None:
    """Refuse new requests, let running ones finish, fail the rest.

    For a thread beside the event loop, which must go on meanwhile.

    Args:
        engine: vLLM's ``AsyncLLM``.
        timeout_s: ``--shutdown-timeout``.
    """
    traffic = traffic_of(engine)
    traffic.is_draining = True
    if traffic.in_flight:
        logger.info(
            "Shutting down: %d requests in flight may finish within %g s.",
            traffic.in_flight,
            timeout_s,
        )
    _wait_for_answers(traffic, timeout_s)
    if not traffic.in_flight or engine.errored or engine.output_handler is None:
        return
    logger.warning("Shutting down: %d requests are failed.", traffic.in_flight)
    loop = engine.output_handler.get_loop()
    loop.call_soon_threadsafe(
        engine.output_processor.propagate_error, ShuttingDownError()
    )
    _wait_for_answers(traffic, LAST_WORDS_S)


def _wait_for_answers(traffic: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while traffic.in_flight and time.monotonic() < deadline:
        time.sleep(_POLL_S)
