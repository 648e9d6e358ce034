# SPDX-License-Identifier: Apache-2.0
"""``vllm serve`` in a subprocess, as a user starts it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import psutil
import requests

VLLM = Path(sys.executable).with_name("vllm")
START_SECONDS = 240
STOP_SECONDS = 30


class ServerProcess:
    """A running server.

    Args:
        command: that starts it.
        port: on which it then listens, of this machine.
        log: where its output goes.
        others: arguments of ``Popen``.

    Attributes:
        url: without a path.
        log: file with everything that the server printed.
        first_metrics: what ``/metrics`` showed before the first request.
    """

    def __init__(
        self, command: Sequence[str], port: int, log: Path, **others: Any
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        self.first_metrics = ""
        with log.open("w") as output:
            self._process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **others,
            )

    @classmethod
    def of(cls, checkpoint: Path, log: Path, *flags: str) -> Self:
        """``vllm serve`` of a checkpoint, with these flags."""
        port = free_port()
        command = [str(VLLM), "serve", "--model", "lladav", "--plugin", "pruning"]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        command += ["--dtype", "float32", "--kv-cache-memory-bytes", str(1 << 28)]
        # Lets a request choose ``image_mode``.
        command += ["--max-num-seqs", "16", "--trust-request-mm-kwargs"]
        env = {**os.environ, "VLLM_LLADAV_MODEL": str(checkpoint)}
        return cls([*command, *flags], port, log, env=env)

    @property
    def pid(self) -> int:
        """Of its first process."""
        return self._process.pid

    def wait_until_healthy(self) -> None:
        """Raise ``RuntimeError`` with the log if the server does not come up."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            if self.is_healthy():
                response = requests.get(f"{self.url}/metrics", timeout=10)
                self.first_metrics = response.text
                return
            time.sleep(0.5)
        raise RuntimeError(f"the server did not start:\n{self.log_tail()}")

    def is_healthy(self) -> bool:
        try:
            return requests.get(f"{self.url}/health", timeout=10).status_code == 200
        except requests.ConnectionError:
            return False

    def log_tail(self, num_lines: int = 60) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-num_lines:])

    def send_signal(self, number: int) -> None:
        """Send a signal to the API server alone, as an init system does."""
        self._process.send_signal(number)

    def exit_code(self, seconds: float) -> int:
        """Wait for the end; raise ``TimeoutExpired`` if it does not come."""
        return self._process.wait(seconds)

    def processes(self, title: str = "") -> list[psutil.Process]:
        """The server's other processes whose title has ``title`` in it."""
        children = psutil.Process(self._process.pid).children(recursive=True)
        return [child for child in children if title in " ".join(child.cmdline())]

    def stop(self) -> None:
        """Terminate as Ctrl-C or an init system would, then by force."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            # The group outlives its leader if a worker hangs.
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextmanager
def running_server(checkpoint: Path, log: Path, *flags: str) -> Iterator[ServerProcess]:
    """A healthy server with these flags, stopped at the end."""
    server = ServerProcess.of(checkpoint, log, *flags)
    try:
        server.wait_until_healthy()
        yield server
    finally:
        server.stop()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
