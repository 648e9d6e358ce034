# SPDX-License-Identifier: Apache-2.0
"""Processes that are killed or stand still."""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import requests

from tests.faults.asking import SHORT, Asking
from tests.server.client import ENDLESS, greedy_tokens
from tests.server.metrics import num_in_engine, wait_for_metrics
from tests.server.process import ServerProcess, running_server

WORKERS_APART = ("--distributed-executor-backend", "mp")
"""As tensor parallelism has them; a single worker of a CPU is in the engine core."""
ENGINE_PROCESSES = {"EngineCore": (), "Worker": WORKERS_APART}
"""What computes, and with which flags there is one."""


@pytest.mark.parametrize("title", ENGINE_PROCESSES)
def test_killed_engine_ends_the_server_with_an_error(
    tiny_checkpoint: Path, tmp_path: Path, title: str
) -> None:
    """Clients have an answer, a supervisor an exit status, a reader of the log a
    reason."""
    flags = ENGINE_PROCESSES[title]
    with running_server(tiny_checkpoint, tmp_path / "log", *flags) as server:
        with Asking(server.url, 4, **ENDLESS) as asking:
            _wait_until(server, lambda v: num_in_engine(v) == 4)
            (victim,) = server.processes(title)
            victim.kill()
        code = server.exit_code(20)
        log = server.log_tail(100)
    assert code == 1
    assert "The engine died" in log
    assert all(reply.error for reply in asking.replies)
    assert all(reply.status in (200, 500) for reply in asking.replies)


def test_killed_api_server_leaves_nobody_behind(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with running_server(tiny_checkpoint, log, *WORKERS_APART) as server:
        others = server.processes("VLLM")
        assert len(others) >= len(ENGINE_PROCESSES)
        server.send_signal(signal.SIGKILL)
        _, left = psutil.wait_procs(others, timeout=30)
    assert not left


@pytest.fixture
def watched_server(
    tiny_checkpoint: Path, tmp_path: Path, title: str
) -> Iterator[ServerProcess]:
    """A server that soon notices a step that does not end."""
    flags = ("--step-overdue-seconds", "2", *ENGINE_PROCESSES[title])
    with running_server(tiny_checkpoint, tmp_path / "log", *flags) as server:
        yield server


@pytest.mark.parametrize("title", ENGINE_PROCESSES)
def test_standing_still_is_noticed_and_overcome(
    watched_server: ServerProcess, title: str
) -> None:
    """``/health`` says so while the process that computes is stopped in a step, and
    nothing is lost once it goes on."""
    url = watched_server.url
    before = greedy_tokens(url)
    with Asking(url, 2, **SHORT) as asking:
        _wait_until(watched_server, lambda v: num_in_engine(v) == 2)
        (stopped,) = watched_server.processes(title)
        stopped.suspend()
        try:
            assert _health_becomes(url, 503) < 10
            reason = requests.get(f"{url}/health", timeout=5).json()["error"]["message"]
            assert "--step-overdue-seconds" in reason
        finally:
            stopped.resume()
        assert _health_becomes(url, 200) < 10
    assert [(r.status, r.error) for r in asking.replies] == [(200, None)] * 2
    assert greedy_tokens(url) == before


def _wait_until(
    server: ServerProcess, is_reached: Callable[[dict[str, float]], bool]
) -> None:
    assert is_reached(wait_for_metrics(server.url, is_reached))


def _health_becomes(url: str, status: int) -> float:
    """Seconds until ``/health`` answers so."""
    start = time.monotonic()
    while time.monotonic() < start + 20:
        if requests.get(f"{url}/health", timeout=5).status_code == status:
            break
        time.sleep(0.1)
    return time.monotonic() - start
