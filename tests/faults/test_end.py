# SPDX-License-Identifier: Apache-2.0
"""A server that is told to end, under load."""

import signal
import socket
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from tests.faults.asking import SHORT, Asking
from tests.server.client import ENDLESS, small_chat
from tests.server.metrics import num_in_engine, wait_for_metrics
from tests.server.process import running_server

EXIT_S = 30
"""Documented: the time for answers, for the engine and for connections, and some."""


def _wait_until_there(url: str, number: int) -> None:
    values = wait_for_metrics(url, lambda v: num_in_engine(v) == number)
    assert num_in_engine(values) == number


def test_running_requests_are_answered_within_the_time(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Those that can finish do; nobody else gets in, and is told to come again."""
    with running_server(
        tiny_checkpoint, tmp_path / "log", "--shutdown-timeout", "60"
    ) as server:
        with Asking(server.url, 8, **SHORT) as asking:
            _wait_until_there(server.url, 8)
            server.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            health = requests.get(f"{server.url}/health", timeout=5)
            late = requests.post(
                f"{server.url}/v1/chat/completions", json=small_chat(), timeout=5
            )
        code = server.exit_code(EXIT_S)
    assert health.status_code == 503
    assert late.status_code == 503
    assert int(late.headers["Retry-After"]) > 0
    assert "shutting down" in late.json()["error"]["message"]
    assert [(r.status, r.error) for r in asking.replies] == [(200, None)] * 8
    assert code == 0
    # What was asked for is no error.
    assert "Traceback" not in server.log_tail(400)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_cannot_finish_is_failed_at_once(
    tiny_checkpoint: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Without a time to finish, which is the default, clients know at once; one that
    does not read its answer is not waited for."""
    with running_server(tiny_checkpoint, tmp_path / "log") as server:
        address = urlsplit(server.url)
        with (
            socket.create_connection((address.hostname, address.port)) as silent,
            Asking(server.url, 8, **ENDLESS) as asking,
        ):
            silent.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Le")
            _wait_until_there(server.url, 8)
            start = time.monotonic()
            server.send_signal(number)
        answered_after = time.monotonic() - start
        code = server.exit_code(EXIT_S)
        left = server.log_tail(400)
    assert answered_after < 10
    for reply in asking.replies:
        assert reply.error is not None
        assert "shutting down" in reply.error["message"]
        assert reply.error["code"] == 503
        if reply.status != 200:  # Not a stream, whose status has long been sent.
            assert reply.status == 503
            assert int(reply.headers["Retry-After"]) > 0
    assert code == 0, left
