# SPDX-License-Identifier: Apache-2.0
"""A request is read only so far.

Its JSON is parsed in one piece while everybody else waits, a second for 150 MB, and is
kept in memory several times over.
"""

from http import HTTPStatus
from typing import TYPE_CHECKING

from fastapi import HTTPException
from starlette.datastructures import Headers

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope

_DIGITS = 20
"""Of a length that are looked at: it is too large with fewer already."""


def bounded(scope: "Scope", receive: "Receive", most: int) -> "Receive":
    """``receive`` of an ASGI request that gives up on a body of more bytes than that.

    By what the client announces, before anything is read, and by what comes.

    Returns:
        A function that raises ``HTTPException`` of status 413.
    """
    announced = Headers(scope=scope).get("content-length", "")
    size = int(announced[:_DIGITS]) if announced.isdecimal() else 0

    async def receive_bounded() -> "Message":
        nonlocal size
        message = {} if size > most else await receive()
        if message.get("type") == "http.request" and not announced:
            size += len(message.get("body", b""))
        if size > most:
            raise HTTPException(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the body must be of at most {most >> 20} MiB (--max-body-mib); "
                f"it is of {size} bytes or more",
            )
        return message

    return receive_bounded
