# SPDX-License-Identifier: Apache-2.0
"""Requests that run while something happens to their server."""

import json
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import requests

from tests.server.client import Json, small_chat

SHORT: Json = {
    "messages": [{"role": "user", "content": "w7 " * 30}],
    "vllm_xargs": {"gen_length": 128, "block_length": 8, "steps": 128},
    "max_tokens": 128,
    "ignore_eos": True,
}
"""A request that is answered within seconds."""

PATIENCE_S = 60


@dataclass
class Reply:
    """Attributes:
    seconds: until the answer was complete.
    status: of the response, 0 if there was none.
    error: in the body or in the stream, None for an answer.
    """

    seconds: float
    status: int
    error: Json | None
    headers: Any


class Asking:
    """Sends the same request several times at once, every second one streamed, in
    threads; ends when all have an answer."""

    def __init__(self, url: str, number: int, **fields: Any) -> None:
        self.replies: list[Reply] = []
        self._url = f"{url}/v1/chat/completions"
        self._fields = fields
        self._threads = [
            threading.Thread(target=self._ask, args=(i % 2 == 1,))
            for i in range(number)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for thread in self._threads:
            thread.join()

    def _ask(self, stream: bool) -> None:
        start = time.monotonic()
        body = small_chat(stream=stream, **self._fields)
        try:
            response = requests.post(self._url, json=body, timeout=PATIENCE_S)
            text = response.text
        except requests.RequestException as error:
            self._note(start, 0, {"message": repr(error)}, {})
            return
        self._note(start, response.status_code, _error_in(text), response.headers)

    def _note(self, start: float, status: int, error: Any, headers: Any) -> None:
        self.replies.append(Reply(time.monotonic() - start, status, error, headers))


def _error_in(text: str) -> Json | None:
    """Of a JSON body or of server-sent events."""
    for line in text.splitlines():
        data = line.removeprefix("data: ")
        if '"error"' in data:
            error: Json = json.loads(data)["error"]
            return error
    return None
