# SPDX-License-Identifier: Apache-2.0
"""Thousands of mixed requests: every one is answered, nothing is left behind.

    python benchmarks/soak.py --minutes 60 --output results/soak/soak.json

Sends drawn pictures of ``examples/tiny`` with requests of all modes, streamed or not,
to a server of its own. Some must be refused, and some clients hang up: while they send,
while they wait, in the middle of a stream. Some have a deadline. ``report.py`` draws
the result. The exit status is the least of

- 3: a request whose client stayed got neither a whole answer nor, with a deadline, a
  504, or one that must be refused was not,
- 4: a greedy request of a fixed set, asked again every ``--watch`` seconds among all
  the others, got other tokens than before them,
- 5: memory grew: the median of a process in the last quarter of the time lies more
  than ``--growth`` percent over that in the third (until then batches of new shapes
  come, for each of which kernels keep some memory),
- 6: KV blocks were held, or requests ran or waited, when all was over,

and 1 if the server did not start or the benchmark itself failed.

Pictures come round: they are few enough to be in the cache of preprocessed pictures
after the warm-up, whose growth would pass for a leak, and too many for the cache of
encoded ones. With ``--pictures`` as many as requests, that cache is what grows.
"""

import argparse
import asyncio
import json
import shlex
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import requests
from common import with_environment
from process_memory import MemorySampler, by_process, growth
from serve_load import drawn_questions
from server import KV_USE, RUNNING, WAITING, Sampler, Server, serve, summarise
from soak_drift import Watch
from soak_requests import (
    KIND_OF_REFUSED,
    KINDS,
    MODEL,
    Client,
    Outcome,
    Planned,
    plans,
)

LEAST_GROWTH_MB = 10
"""Less than this is no growth, whatever its share of a small process."""


class Exit(IntEnum):
    """Statuses of what went wrong."""

    NOT_ANSWERED = 3
    DRIFT = 4
    MEMORY = 5
    LEFT_BEHIND = 6


Problem = tuple[Exit, str]


def leftovers(server: Server, client: Client) -> dict[str, Any]:
    """What is still in use once everything is over.

    One more request comes first: gauges are set by iterations, and none need follow
    the last abort.
    """
    try:
        server.wait_until_idle()
        last = iter([Planned(0, "exact", {"max_tokens": 16})])
        (outcome,) = asyncio.run(client.send_all(last, slots=1))
        values = server.wait_until_idle()
    except requests.RequestException:
        return {"the server": "gone"}
    found = {name: values[name] for name in (KV_USE, RUNNING, WAITING)}
    return found if outcome.state == "answered" else {**found, "last": outcome.reason}


def by_kind(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """Counts, and seconds of the answered."""
    rows = {}
    for kind in (*KINDS, KIND_OF_REFUSED):
        mine = [outcome for outcome in outcomes if outcome.kind == kind]
        seconds = [outcome.seconds for outcome in mine if outcome.state == "answered"]
        rows[kind] = {
            **Counter(outcome.state for outcome in mine),
            "seconds_p50": statistics.median(seconds) if seconds else None,
            "seconds_max": max(seconds, default=None),
        }
    return rows


def latency_by_quarter(outcomes: Sequence[Outcome]) -> list[float]:
    """Median seconds of the answered requests, as they ended, in four equal parts."""
    seconds = [outcome.seconds for outcome in outcomes if outcome.state == "answered"]
    size = max(1, len(seconds) // 4)
    parts = [seconds[start:][:size] for start in range(0, 4 * size, size)]
    return [statistics.median(part) for part in parts if part]


def problems(report: dict[str, Any], most_growth: float) -> list[Problem]:
    """Why the soak failed; empty if it did not."""
    found = [
        (Exit.NOT_ANSWERED, f"{number} times {reason}")
        for reason, number in report["failures"].items()
    ]
    drift = report["drift"]
    if drift["changed"]:
        kinds = Counter(row["kind"] for row in drift["changed"])
        text = f"{len(drift['changed'])} of {drift['asked']} answers changed: {kinds}"
        found.append((Exit.DRIFT, text))
    for name, process in report["memory"].items():
        grown = process["growth"]
        if not grown or grown["growth_mb"] < LEAST_GROWTH_MB:
            continue
        if grown["growth_percent"] > most_growth:
            text = f"memory of {name} grew by {grown['growth_percent']:.1f}%"
            found.append((Exit.MEMORY, text))
    found += [
        (Exit.LEFT_BEHIND, f"{name} is {value}")
        for name, value in report["leftovers"].items()
        if value
    ]
    return found


async def soak(
    client: Client, args: argparse.Namespace
) -> tuple[list[Outcome], dict[str, Any]]:
    """Outcomes of all requests, and what became of the watched ones."""
    watch = Watch(client)
    await watch.learn()
    todo = plans(
        args.requests,
        args.minutes and 60 * args.minutes,
        seed=args.seed,
        leave_share=args.leave_share,
        refused_share=args.refused_share,
    )
    repeat = asyncio.create_task(watch.repeat(args.watch))
    outcomes = await client.send_all(todo, args.concurrency)
    repeat.cancel()
    with suppress(asyncio.CancelledError):
        await repeat
    return outcomes, vars(watch.drift)


def run(args: argparse.Namespace, log: Path) -> dict[str, Any]:
    flags = [
        *("--plugin", "pruning", "--dtype", "float32"),
        # A guided request counts as two.
        *("--max-num-seqs", str(2 * args.concurrency)),
        *("--max-num-batched-tokens", "8192"),
        *args.server_args,
    ]
    with TemporaryDirectory() as scratch, serve(MODEL, flags, log) as server:
        questions: list[dict[str, Any]] = [
            {**question, "png": Path(question["image"]).read_bytes()}
            for question in drawn_questions(Path(scratch), args.pictures, args.seed)
        ]
        client = Client(server.url, questions)
        start = time.monotonic()
        with (
            Sampler(server, args.interval, with_memory=False) as sampler,
            MemorySampler(server.pid, args.interval) as memory,
        ):
            outcomes, drift = asyncio.run(soak(client, args))
        seconds = time.monotonic() - start
        left = leftovers(server, client)
    processes = by_process(memory.samples)
    for row in processes.values():
        row["growth"] = growth(row["seconds"], row["private"])
    return with_environment(
        args,
        server_flags=flags,
        seconds=seconds,
        states=Counter(outcome.state for outcome in outcomes),
        kinds=by_kind(outcomes),
        latency_p50_by_quarter=latency_by_quarter(outcomes),
        failures=Counter(o.reason for o in outcomes if o.state == "failed"),
        drift=drift,
        memory=processes,
        leftovers=left,
        **summarise(sampler.samples),
    )


def show(report: dict[str, Any]) -> None:
    states = ", ".join(f"{n} {state}" for state, n in report["states"].items())
    print(f"{states} in {report['seconds']:.0f} s")
    for kind, row in report["kinds"].items():
        print(f"  {kind:14s} {row}")
    quarters = ", ".join(f"{s:.2f}" for s in report["latency_p50_by_quarter"])
    print(f"  median seconds of an answer, by quarter: {quarters}")
    print(f"  at most {report['running_peak']} at once; left: {report['leftovers']}")
    drift = report["drift"]
    print(f"  {drift['asked']} answers asked again, {len(drift['changed'])} changed")
    for name, row in report["memory"].items():
        print(
            f"  {name:14s} {row['private'][0]:6.0f} to {row['private'][-1]:6.0f} MB "
            f"private, RSS to {row['rss'][-1]:6.0f}; {row['growth'] or 'too short'}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, help="default: 2000, or no limit")
    parser.add_argument("--minutes", type=float, help="default: no limit")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument(
        "--leave-share", type=float, default=0.04, help="of clients that hang up"
    )
    parser.add_argument(
        "--refused-share", type=float, default=0.05, help="that must be refused"
    )
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument(
        "--watch", type=float, default=30.0, help="s between the watched requests"
    )
    parser.add_argument("--growth", type=float, default=3.0, help="percent, at most")
    parser.add_argument("--interval", type=float, default=1.0, help="s between samples")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--server-args", type=shlex.split, default=[], help="as --server-args='--x 1'"
    )
    parser.add_argument("--output", type=Path, default=Path("results/soak/soak.json"))
    args = parser.parse_args()
    if args.requests is None and args.minutes is None:
        args.requests = 2000
    args.output.parent.mkdir(parents=True, exist_ok=True)
    report = run(args, args.output.with_suffix(".log"))
    found = problems(report, args.growth)
    report["problems"] = [text for _, text in found]
    args.output.write_text(json.dumps(report, indent=2))
    show(report)
    if found:
        print("; ".join(report["problems"]), file=sys.stderr)
        raise SystemExit(min(status for status, _ in found))


if __name__ == "__main__":
    main()
