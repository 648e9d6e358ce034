# SPDX-License-Identifier: Apache-2.0
"""Memory of each process of a server, from outside."""

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Self

import psutil

TITLE = "VLLM::"
"""What the titles of vLLM's processes begin with."""

MB = 1e6
FEWEST_SAMPLES = 4
"""In a quarter of the time."""


@dataclass(frozen=True)
class Memory:
    """Of one process, in MB.

    Attributes:
        rss: resident.
        private: the part of it that no other process has: what its end would free.
        anonymous: the part of it that is neither a file nor shared: heaps, stacks.
    """

    rss: float
    private: float
    anonymous: float


def read_memory(pid: int) -> Memory:
    """Raises ``OSError`` if the process is gone."""
    kib: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split()[:2]
        kib[name.rstrip(":")] = int(value)
    private = kib["Private_Clean"] + kib["Private_Dirty"]
    return Memory(*(n * 1024 / MB for n in (kib["Rss"], private, kib["Anonymous"])))


def tree_memory(pid: int) -> dict[str, Memory]:
    """Of a server and its descendants, by role: ``API server`` for ``pid`` itself,
    what vLLM calls its processes, and ``helper`` for any other. Of several with one
    role, all but the first have a number behind it."""
    found: dict[str, Memory] = {}
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.Error, OSError):
                role = "API server" if process.pid == pid else _role(process)
                same = sum(name.startswith(role) for name in found)
                name = f"{role} {same}" if same else role
                found[name] = read_memory(process.pid)
    return found


def _role(process: psutil.Process) -> str:
    title = " ".join(process.cmdline()).strip()
    return title.removeprefix(TITLE) if title.startswith(TITLE) else "helper"


@dataclass(frozen=True)
class MemorySample:
    """Attributes:
    seconds: since sampling began.
    processes: by role.
    """

    seconds: float
    processes: Mapping[str, Memory]


class MemorySampler(threading.Thread):
    """Looks at a server's processes every ``interval`` seconds while a ``with`` block
    runs."""

    def __init__(self, pid: int, interval: float) -> None:
        super().__init__(daemon=True)
        self.samples: list[MemorySample] = []
        self._pid, self._interval = pid, interval
        self._done = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self.join()

    def run(self) -> None:
        start = time.monotonic()
        while True:
            processes = tree_memory(self._pid)
            self.samples.append(MemorySample(time.monotonic() - start, processes))
            if self._done.wait(self._interval):
                return


def by_process(samples: Sequence[MemorySample]) -> dict[str, dict[str, Any]]:
    """What every process had over time: ``seconds``, and a list for each field of
    :class:`Memory`; processes that the first sample had not are left out."""
    rows: dict[str, dict[str, Any]] = {}
    for name in samples[0].processes if samples else ():
        mine = [(s.seconds, s.processes[name]) for s in samples if name in s.processes]
        rows[name] = {"seconds": [round(seconds, 1) for seconds, _ in mine]}
        for field in asdict(mine[0][1]):
            rows[name][field] = [round(getattr(m, field), 1) for _, m in mine]
    return rows


def growth(seconds: Sequence[float], megabytes: Sequence[float]) -> dict[str, Any]:
    """How memory grew; nothing if there are too few samples.

    Returns:
        ``start_mb`` and ``end_mb``, the medians of the quarters of the time
        (``quarters_mb``), the growth from the third to the last of them
        (``growth_mb``, ``growth_percent``), and ``slope_mb_per_hour`` of the second
        half: the median of the slopes between samples half of it apart, which steps and
        outliers do not move.
    """
    quarter = len(megabytes) // 4
    if quarter < FEWEST_SAMPLES:
        return {}
    starts = (0, quarter, 2 * quarter, len(megabytes) - quarter)
    medians = [median(megabytes[start:][:quarter]) for start in starts]
    slopes = [
        (megabytes[i + quarter] - megabytes[i]) / (seconds[i + quarter] - seconds[i])
        for i in range(len(megabytes) - 2 * quarter, len(megabytes) - quarter)
    ]
    return {
        "start_mb": megabytes[0],
        "end_mb": megabytes[-1],
        "quarters_mb": [round(value) for value in medians],
        "growth_mb": medians[3] - medians[2],
        "growth_percent": 100 * (medians[3] / medians[2] - 1),
        "slope_mb_per_hour": 3600 * median(slopes),
    }
