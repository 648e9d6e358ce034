# SPDX-License-Identifier: Apache-2.0
"""A ``vllm serve`` of one's own, and what can be seen of it from outside."""

import base64
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests
from common import png
from PIL import Image

VLLM = str(Path(sys.executable).with_name("vllm"))
START_SECONDS = 600
STOP_SECONDS = 30
REQUEST_SECONDS = 600
CHAT = "/v1/chat/completions"

# vLLM on a CPU leaves one core to processes that are idle while a step runs.
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}

RUNNING = "vllm:num_requests_running"
WAITING = "vllm:num_requests_waiting"
KV_USE = "vllm:kv_cache_usage_perc"


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        url: without a path.
        pid: of the API server, the parent of all its processes.
    """

    url: str
    pid: int

    def metrics(self) -> Counter:
        return read_metrics(self.url)

    def num_kv_blocks(self) -> int:
        """That requests can have: vLLM keeps one for itself."""
        text = requests.get(f"{self.url}/metrics", timeout=30).text
        return parse_num_kv_blocks(text) - 1

    def rss_bytes(self) -> int:
        return tree_rss_bytes(self.pid)

    def ask(
        self, model: str, image: Image.Image, text: str, **fields: Any
    ) -> dict[str, Any]:
        """The response to one picture and one question; raises for HTTP errors."""
        body = chat_body(model, png(image), text, **fields)
        response = requests.post(self.url + CHAT, json=body, timeout=REQUEST_SECONDS)
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
        return answer

    def wait_until_idle(self, seconds: float = 60) -> Counter:
        """Metrics once nothing runs and waits; as they are when time is up."""
        deadline = time.monotonic() + seconds
        while True:
            values = self.metrics()
            idle = not values[RUNNING] and not values[WAITING]
            if idle or time.monotonic() > deadline:
                return values
            time.sleep(0.1)


@contextmanager
def serve(model: str, flags: Sequence[str], log: Path) -> Iterator[Server]:
    """``vllm serve`` with these flags on a free port of this machine only."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [VLLM, "serve", "--model", model]
    command += ["--host", "127.0.0.1", "--port", str(port), *flags]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            env={**ENVIRONMENT, **os.environ},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(f"http://127.0.0.1:{port}", process.pid)
    # A benchmark that is told to stop must not leave its server running.
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        deadline = time.monotonic() + START_SECONDS
        while not is_healthy(server.url):
            if process.poll() is not None or time.monotonic() > deadline:
                tail = log.read_text(errors="replace")[-4000:]
                raise RuntimeError(f"the server did not start:\n{tail}")
            time.sleep(0.5)
        yield server
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            # The group outlives its leader if a worker hangs.
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        signal.signal(signal.SIGTERM, previous)


def is_healthy(url: str) -> bool:
    try:
        return requests.get(f"{url}/health", timeout=10).status_code == 200
    except requests.RequestException:
        return False


def chat_body(model: str, image: bytes, text: str, **fields: Any) -> dict[str, Any]:
    """A request of one picture (a file's content) and one question."""
    data = base64.b64encode(image).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "text", "text": text},
    ]
    messages = [{"role": "user", "content": content}]
    return {"model": model, "messages": messages, "temperature": 0, **fields}


def read_metrics(url: str) -> Counter:
    """Samples of vLLM and of the plugin by name, summed over labels."""
    return parse_metrics(requests.get(f"{url}/metrics", timeout=30).text)


def parse_metrics(text: str) -> Counter:
    values: Counter = Counter()
    for line in text.splitlines():
        if line.startswith(("vllm:", "lladav:")):
            name, _, value = line.rpartition(" ")
            values[name.partition("{")[0]] += float(value)
    return values


def parse_num_kv_blocks(text: str) -> int:
    """All blocks of the KV cache, from the labels of ``vllm:cache_config_info``."""
    return sum(int(number) for number in re.findall(r'num_gpu_blocks="(\d+)"', text))


def tree_rss_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants, added up.

    Pages that several processes share count for each of them.
    """
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for process in family:
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


@dataclass(frozen=True)
class Sample:
    """The server at one moment.

    Attributes:
        seconds: since sampling began.
        kv_use: share of the KV blocks that requests hold.
        rss_bytes: of all its processes; 0 where memory is not sampled.
    """

    seconds: float
    running: int
    waiting: int
    kv_use: float
    rss_bytes: int


class Sampler(threading.Thread):
    """Looks at the server every ``interval`` seconds while a ``with`` block runs."""

    def __init__(
        self, server: Server, interval: float, with_memory: bool = True
    ) -> None:
        super().__init__(daemon=True)
        self.server, self.interval = server, interval
        self.with_memory = with_memory
        self.samples: list[Sample] = []
        self._done = threading.Event()

    def __enter__(self) -> "Sampler":
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self.join()

    def run(self) -> None:
        start = time.monotonic()
        while not self._done.wait(self.interval):
            # A busy server may be late; the next sample will do.
            with suppress(requests.RequestException):
                self.samples.append(self._look(time.monotonic() - start))

    def _look(self, seconds: float) -> Sample:
        values = self.server.metrics()
        return Sample(
            seconds=seconds,
            running=int(values[RUNNING]),
            waiting=int(values[WAITING]),
            kv_use=values[KV_USE],
            rss_bytes=self.server.rss_bytes() if self.with_memory else 0,
        )


def summarise(samples: Sequence[Sample]) -> dict[str, float | None]:
    """Peaks and medians of what was sampled; None where nothing was."""
    busy = [sample for sample in samples if sample.running]
    return {
        "samples": len(samples),
        "running_peak": max((s.running for s in busy), default=None),
        "running_median": statistics.median(s.running for s in busy) if busy else None,
        "waiting_peak": max((s.waiting for s in samples), default=None),
        "kv_use_peak": max((s.kv_use for s in samples), default=None),
        "rss_peak_mb": max((s.rss_bytes / 1e6 for s in samples), default=None),
    }
