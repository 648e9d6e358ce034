# SPDX-License-Identifier: Apache-2.0
"""What became of every request that was sent to generate something.

``lladav:requests_received_total`` is the sum of ``lladav:requests_ended_total`` over
its outcomes, plus what is in flight.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

from prometheus_client import Counter

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Send

OUTCOMES = ("finished", "refused", "aborted", "failed")

GENERATING = frozenset(
    {
        "/v1/chat/completions",
        "/v1/chat/completions/batch",
        "/v1/completions",
        "/v1/messages",
        "/v1/responses",
        "/v2/chat",
        "/cohere/v2/chat",
        "/generative_scoring",
        "/inference/v1/generate",
        "/invocations",
    }
)
"""Paths whose requests are counted."""

RETRY_AFTER_S = 1
"""What a 503 tells a client to wait. A queue moves on with every answer, and another
server can take the request at once."""

_ERROR_EVENTS = (b'data: {"error"', b"event: error", b"event: response.failed")


@cache
def _counters() -> tuple[Counter, Counter]:
    received = Counter(
        "lladav:requests_received",
        "Requests to generate something, before anything was looked at.",
        ["model_name"],
    )
    ended = Counter(
        "lladav:requests_ended",
        "Requests by what became of them: finished (answered), refused (4xx, or 503 "
        "where the queue is full or the server ends), aborted (by the client), failed.",
        ["model_name", "outcome"],
    )
    return received, ended


def show_counters(model_name: str) -> None:
    """Have the counters on ``/metrics`` from the start, at zero."""
    received, ended = _counters()
    received.labels(model_name)
    for outcome in OUTCOMES:
        ended.labels(model_name, outcome)


def count_received(model_name: str) -> None:
    _counters()[0].labels(model_name).inc()


def count_ended(model_name: str, outcome: str) -> None:
    _counters()[1].labels(model_name, outcome).inc()


class Answer:
    """An answer on its way: watches the ASGI messages of one request.

    Adds ``Retry-After`` to a 503 that has none.
    """

    def __init__(self, receive: "Receive", send: "Send") -> None:
        self._receive, self._send = receive, send
        self._status = 0
        self._is_complete = False
        self._is_abandoned = False
        self._has_error = False

    async def receive(self) -> "Message":
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._is_complete:
            self._is_abandoned = True
        return message

    async def send(self, message: "Message") -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            if self._status == 503:
                message = {**message, "headers": with_retry_after(message["headers"])}
        elif message["type"] == "http.response.body":
            body = message.get("body", b"")
            self._has_error |= body.startswith(_ERROR_EVENTS)
            self._is_complete |= not message.get("more_body", False)
        await self._send(message)

    def outcome(self, is_draining: bool) -> str:
        """One of :data:`OUTCOMES`, once the request has been handled.

        Args:
            is_draining: a 503 comes from the end of the server, not from its queue.
        """
        if self._is_abandoned:
            return "aborted"
        if not self._is_complete or self._has_error:
            return "failed"
        if self._status < 400:
            return "finished"
        is_full = self._status == 503 and not is_draining
        return "refused" if self._status < 500 or is_full else "failed"


def with_retry_after(headers: Any) -> list[tuple[bytes, bytes]]:
    """ASGI headers with ``Retry-After``, if there is none."""
    found = list(headers)
    if not any(name.lower() == b"retry-after" for name, _ in found):
        found.append((b"retry-after", str(RETRY_AFTER_S).encode()))
    return found
