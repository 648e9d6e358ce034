# SPDX-License-Identifier: Apache-2.0
"""``make monitoring-check``: a real Prometheus with the rules, beside a real server.

Needs ``prometheus`` and ``promtool`` on PATH. Every query of the dashboard must give
numbers, and alerts fire when what they tell of happens, the rules being those of
examples/docker/ with seconds for minutes. Prints a line for everything, and exits with
1 if one does not hold.
"""

import math
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import requests

from tests.deploy.monitoring import DOCKER, PROMETHEUS, RULES, panels
from tests.server.client import post, small_chat, user_message
from tests.server.process import ServerProcess, running_server
from vllm_lladav.tiny.checkpoint import write_checkpoint

ALERT_TESTS = Path(__file__).with_name("alerts_test.yml")
PICTURE = Path(__file__).parents[2] / "docs/picture.png"
FLAGS = ("--max-num-seqs", "2", "--max-num-queued-reqs", "4")
WAIT_SECONDS = 60.0


class Prometheus:
    """One that runs, with the example's configuration at another address and pace."""

    def __init__(self, server: str, folder: Path) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{listener.getsockname()[1]}"
        self._url = f"http://{address}/api/v1"
        config = _replaced(
            PROMETHEUS.read_text(),
            (r"lladav:8000", server.removeprefix("http://")),
            (r"_interval: 15s", "_interval: 1s"),
        )
        rules = _replaced(
            RULES.read_text(), (r"\[\d+[mh]\]", "[10s]"), (r"for: \d+m", "for: 2s")
        )
        (folder / PROMETHEUS.name).write_text(config)
        (folder / RULES.name).write_text(rules)
        self._process = subprocess.Popen(
            ["prometheus", f"--config.file={folder / PROMETHEUS.name}"]
            + [f"--storage.tsdb.path={folder}/data", "--log.level=error"]
            + [f"--web.listen-address={address}"]
        )

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        alerts = requests.get(f"{self._url}/alerts", timeout=10).json()
        return {
            alert["labels"]["alertname"]
            for alert in alerts["data"]["alerts"]
            if alert["state"] == "firing"
        }

    def numbers(self, expr: str) -> list[float]:
        """What a panel's query gives now."""
        expr = expr.replace("$__rate_interval", "10s").replace("$instance", ".*")
        answer = requests.get(
            f"{self._url}/query", params={"query": expr}, timeout=10
        ).json()
        if answer["status"] != "success":
            return [math.nan]
        return [float(series["value"][1]) for series in answer["data"]["result"]]


def _replaced(text: str, *changes: tuple[str, str]) -> str:
    for pattern, ours in changes:
        text, count = re.subn(pattern, ours, text)
        assert count, pattern
    return text


@contextmanager
def _running_prometheus(server: str, folder: Path) -> Iterator[Prometheus]:
    prometheus = Prometheus(server, folder)
    try:
        yield prometheus
    finally:
        prometheus.stop()


@contextmanager
def _asking(server: ServerProcess, num_clients: int, **fields: Any) -> Iterator[None]:
    """Clients that ask about the picture over and over, all at once."""
    message = user_message("Describe the picture.", PICTURE)
    fields = {"max_tokens": 32, "messages": [message], **fields}
    is_over = False

    def ask() -> None:
        while not is_over:
            with suppress(requests.RequestException):
                post(server.url, "chat/completions", small_chat(**fields))
            time.sleep(0.05)

    with ThreadPoolExecutor(num_clients) as clients:
        for _ in range(num_clients):
            clients.submit(ask)
        try:
            yield
        finally:
            is_over = True


class Check:
    """Prints what holds and what does not."""

    def __init__(self) -> None:
        self.failed = 0

    def note(self, holds: bool, text: str) -> None:
        self.failed += not holds
        print(f"{'ok  ' if holds else 'FAIL'} {text}", flush=True)

    def comes(self, what: str, is_there: Callable[[], bool]) -> None:
        """Note whether something holds before long."""
        start = time.monotonic()
        holds = False
        while not holds and time.monotonic() - start < WAIT_SECONDS:
            time.sleep(0.5)
            with suppress(requests.RequestException):
                holds = is_there()
        self.note(holds, f"{what} (after {time.monotonic() - start:.0f} s)")

    def command(self, *command: str | Path) -> None:
        run = subprocess.run(command, capture_output=True, text=True)
        text = " ".join(map(str, command[:3]))
        self.note(run.returncode == 0, f"{text}\n{run.stdout}{run.stderr}".rstrip())


def _watch(check: Check, server: ServerProcess, prometheus: Prometheus) -> None:
    def fires(name: str) -> None:
        check.comes(f"{name} fires", lambda: name in prometheus.firing())

    def is_quiet() -> None:
        check.comes("nothing fires", lambda: not prometheus.firing())

    with _asking(server, 2):
        # Two scrapes for a rate, and a request that has ended between them.
        check.comes("the server is scraped", lambda: prometheus.numbers("up") == [1])
        time.sleep(10)
        for panel in panels():
            for target in panel["targets"]:
                found = prometheus.numbers(target["expr"])
                holds = bool(found) and not any(map(math.isnan, found))
                shown = ", ".join(f"{value:.4g}" for value in found)
                name = f"{panel['title']} {target['legendFormat']}".strip()
                check.note(holds, f"panel {name}: {shown or 'nothing'}")
        is_quiet()
    with _asking(server, 12):
        fires("LladavQueueFull")
    is_quiet()
    with _asking(server, 2, vllm_xargs={"deadline_seconds": 0.01}):
        fires("LladavRequestsFail")
    is_quiet()
    engines = server.processes("EngineCore")
    with _asking(server, 1):
        for engine in engines:
            engine.send_signal(signal.SIGSTOP)
        try:
            fires("LladavStepOverdue")
            check.comes("/health is a 503 as well", lambda: not server.is_healthy())
        finally:
            for engine in engines:
                engine.send_signal(signal.SIGCONT)
    is_quiet()
    check.comes("/health is a 200 again", server.is_healthy)
    server.stop()
    fires("LladavServerDown")


def main() -> int:
    """Check; 1 if anything does not hold."""
    for program in ("prometheus", "promtool"):
        if shutil.which(program) is None:
            print(f"{program} is not on PATH")
            return 1
    check = Check()
    check.command("promtool", "check", "config", DOCKER / "prometheus/prometheus.yml")
    check.command("promtool", "test", "rules", ALERT_TESTS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = folder / "lladav-random"
        write_checkpoint(checkpoint)
        flags = (*FLAGS, "--step-overdue-seconds", "5")
        with (
            running_server(checkpoint, folder / "server.log", *flags) as server,
            _running_prometheus(server.url, folder) as prometheus,
        ):
            _watch(check, server, prometheus)
    return 1 if check.failed else 0


if __name__ == "__main__":
    sys.exit(main())
