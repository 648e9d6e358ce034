# SPDX-License-Identifier: Apache-2.0
"""Useful answers per second of a server that is offered more than it can do.

    python benchmarks/goodput.py --output results/goodput/goodput.json

Finds the capacity of a server (answers per second with ``--slots`` requests at any
time) before every load, then offers it 0.5 to 3 times as much, as clients do who do not
know of each other: at random moments (Poisson), whatever became of the requests before.
An answer is in time if it comes within ``--patience`` times what an answer takes at
capacity. What is compared:

- ``unbounded``: all requests queue, clients wait for ever,
- ``bounded``: the server refuses (HTTP 503) what it has no room for,
- ``unbounded, limit`` and ``bounded, limit``: requests end when the limit is over, by
  the server (``vllm_xargs: {"deadline_seconds": s}``, HTTP 504) with ``--deadline
  server``, or because the client hangs up,
- ``bounded, retry``: as ``bounded, limit``, and refused clients come again after as
  many seconds as ``Retry-After`` says, as long as the limit is not over,
- ``bounded, priority``: as ``bounded, limit``, with ``--scheduling-policy priority``;
  one in five requests is urgent (``priority: -1``).

``report.py`` draws the result.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
from common import with_environment
from serve_load import drawn_questions
from server import CHAT, Sampler, Server, chat_body, serve, summarise

MODEL = "lladav-tiny"
NUM_PICTURES = 50
URGENT_SHARE = 0.2
RETRY_SECONDS = 1.0
"""Where the server does not say when to come again."""


@dataclass(frozen=True)
class Variant:
    """How a server and its clients behave under load.

    Attributes:
        is_bounded: the server refuses what is too much.
        has_limit: requests end when they have become useless.
        retries: refused clients come again.
        policy: of the server's scheduling.
    """

    name: str
    is_bounded: bool = True
    has_limit: bool = True
    retries: bool = False
    policy: str = "fcfs"


VARIANTS = (
    Variant("unbounded", is_bounded=False, has_limit=False),
    Variant("unbounded, limit", is_bounded=False),
    Variant("bounded", has_limit=False),
    Variant("bounded, limit"),
    Variant("bounded, retry", retries=True),
    Variant("bounded, priority", policy="priority"),
)


@dataclass
class Outcome:
    """Attributes:
    start: s since the load began.
    seconds: until the end.
    status: of HTTP; 0 if the client hung up.
    refused: seconds until each 503.
    """

    start: float
    is_urgent: bool = False
    seconds: float = 0
    status: int = 0
    refused: list[float] = field(default_factory=list)


class Load:
    """Requests that all cost the same: exact, no end before the canvas is full."""

    def __init__(
        self, server: Server, args: argparse.Namespace, questions: list[dict[str, Any]]
    ) -> None:
        self._server, self._args, self._questions = server, args, questions
        self._numbers = count()

    def session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            self._server.url,
            # A request of its own for each: hanging up is closing the connection.
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
        )

    def _body(self, **xargs: Any) -> dict[str, Any]:
        question = self._questions[next(self._numbers) % len(self._questions)]
        length = self._args.gen_length
        xargs = {
            **{"denoising": "exact", "prune_rate": 0},
            **{"gen_length": length, "block_length": length, "steps": length},
            **xargs,
        }
        return chat_body(
            MODEL,
            question["png"],
            question["question"],
            max_tokens=length,
            ignore_eos=True,
            vllm_xargs=xargs,
        )

    async def capacity(self, seconds: float) -> tuple[float, float]:
        """Answers per second with all slots taken, and median seconds of an answer."""
        latencies: list[float] = []
        start = time.monotonic()

        async def work(session: aiohttp.ClientSession) -> None:
            while time.monotonic() < start + seconds:
                sent = time.monotonic()
                async with session.post(CHAT, json=self._body()) as response:
                    response.raise_for_status()
                    await response.read()
                latencies.append(time.monotonic() - sent)

        async with self.session() as session:
            await asyncio.gather(*(work(session) for _ in range(self._args.slots)))
        elapsed = time.monotonic() - start
        return len(latencies) / elapsed, statistics.median(latencies)

    async def offer(
        self, variant: Variant, rate: float, limit: float, seconds: float
    ) -> list[Outcome]:
        """Requests at ``rate`` a second; what is not over by the end is hung up on."""
        start = time.monotonic()
        outcomes = []
        tasks = set()
        async with self.session() as session:
            for moment, is_urgent in arrivals(rate, seconds, self._args.seed):
                await asyncio.sleep(max(0, start + moment - time.monotonic()))
                outcomes.append(Outcome(time.monotonic() - start, is_urgent))
                one = self._send(session, variant, outcomes[-1], limit)
                tasks.add(asyncio.create_task(one))
            await asyncio.sleep(max(0, start + seconds - time.monotonic()))
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return outcomes

    async def _send(
        self,
        session: aiohttp.ClientSession,
        variant: Variant,
        outcome: Outcome,
        limit: float,
    ) -> None:
        sent = time.monotonic()
        by_server = variant.has_limit and self._args.deadline == "server"
        by_client = variant.has_limit and self._args.deadline == "client"
        try:
            async with asyncio.timeout(limit if by_client else None):
                while True:
                    left = limit - (time.monotonic() - sent)
                    xargs = {"deadline_seconds": max(left, 0.01)} if by_server else {}
                    body = self._body(**xargs)
                    if outcome.is_urgent and variant.policy == "priority":
                        body["priority"] = -1
                    asked = time.monotonic()
                    async with session.post(CHAT, json=body) as response:
                        await response.read()
                    outcome.status = response.status
                    if outcome.status != 503:
                        break
                    outcome.refused.append(time.monotonic() - asked)
                    wait = float(response.headers.get("Retry-After", RETRY_SECONDS))
                    if not variant.retries or time.monotonic() + wait > sent + limit:
                        break
                    await asyncio.sleep(wait)
        except TimeoutError:
            outcome.status = 0
        finally:
            outcome.seconds = time.monotonic() - sent


def arrivals(rate: float, seconds: float, seed: int) -> Iterator[tuple[float, bool]]:
    """Moments of a Poisson process, and whether the request is urgent."""
    rng = random.Random(f"{seed} {rate}")
    moment = rng.expovariate(rate)
    while moment < seconds:
        yield moment, rng.random() < URGENT_SHARE
        moment += rng.expovariate(rate)


def useful_share(outcomes: Sequence[Outcome], limit: float) -> float | None:
    useful = sum(o.status == 200 and o.seconds <= limit for o in outcomes)
    return useful / len(outcomes) if outcomes else None


def figures(
    outcomes: Sequence[Outcome], limit: float, seconds: float
) -> dict[str, Any]:
    """Of the requests that came once the first ones were over or useless, and early
    enough for an answer to be useful before the load ended."""
    counted = [o for o in outcomes if limit <= o.start < seconds - limit]
    span = seconds - 2 * limit
    answered = [o for o in counted if o.status == 200]
    latencies = [o.seconds for o in answered]
    refused = [second for o in counted for second in o.refused]
    share = useful_share(counted, limit)
    return {
        "offered_per_s": len(counted) / span,
        "answered_per_s": len(answered) / span,
        "goodput_per_s": (share or 0) * len(counted) / span,
        "useful_share": share,
        "useful_share_urgent": useful_share([o for o in counted if o.is_urgent], limit),
        "useful_share_others": useful_share(
            [o for o in counted if not o.is_urgent], limit
        ),
        "answer_p50_s": statistics.median(latencies) if latencies else None,
        "answer_max_s": max(latencies, default=None),
        "refusals": len(refused),
        "refusal_p50_s": statistics.median(refused) if refused else None,
        "statuses": dict(Counter(str(o.status or "hung up") for o in counted)),
    }


def measure(
    args: argparse.Namespace,
    variants: Sequence[Variant],
    questions: list[dict[str, Any]],
    report: dict[str, Any],
) -> None:
    """All loads of variants that share a server."""
    first = variants[0]
    flags = [
        *("--plugin", "pruning", "--dtype", "float32"),
        *("--max-num-seqs", str(args.slots)),
        *("--max-num-batched-tokens", "8192"),
        *("--scheduling-policy", first.policy, *args.server_args),
    ]
    if args.step_ms:
        flags += ["--worker-extension-cls", "paced_worker.Paced"]
    bound = args.queued + args.slots if first.is_bounded else 10**6
    flags += ["--max-num-queued-reqs", str(bound)]
    log = args.output.with_name(f"{args.output.stem}-{first.name}.log")
    with serve(MODEL, flags, log) as server:
        load = Load(server, args, questions)
        asyncio.run(load.capacity(args.warm_up))
        for multiple, variant in product(args.multiples, variants):
            # Anew for each: other processes slow down a machine that is shared.
            capacity, latency = asyncio.run(load.capacity(args.warm_up))
            rate, limit = multiple * capacity, args.patience * latency
            seconds = args.seconds + 2 * limit
            with Sampler(server, 0.5, with_memory=False) as sampler:
                outcomes = asyncio.run(load.offer(variant, rate, limit, seconds))
            server.wait_until_idle()
            row = {
                "variant": variant.name,
                "multiple": multiple,
                "capacity_per_s": capacity,
                "limit_s": limit,
                **figures(outcomes, limit, seconds),
                **summarise(sampler.samples),
            }
            row["goodput_share"] = row["goodput_per_s"] / capacity
            report["runs"].append(row)
            show(row)
            args.output.write_text(json.dumps(report, indent=2))


def show(row: dict[str, Any]) -> None:
    urgent = row["useful_share_urgent"]
    print(
        f"{row['variant']:18s} x{row['multiple']:<4g} offered "
        f"{row['offered_per_s']:6.2f}/s, answered {row['answered_per_s']:6.2f}/s, "
        f"useful {row['goodput_per_s']:6.2f}/s = {row['goodput_share']:.0%} of "
        f"capacity, answers p50 "
        f"{row['answer_p50_s'] or 0:5.2f} s, refused p50 "
        f"{1e3 * (row['refusal_p50_s'] or 0):4.0f} ms, {row['statuses']}, "
        f"urgent useful {urgent if urgent is None else round(urgent, 2)}, waiting "
        f"{row['waiting_peak']}",
        flush=True,
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--multiples", type=float, nargs="+", default=[0.5, 0.8, 1, 1.5, 2, 3]
    )
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--variants", nargs="+", choices=names, default=names)
    parser.add_argument(
        "--slots", type=int, default=8, help="requests that run at once"
    )
    parser.add_argument(
        "--queued", type=int, default=8, help="that may wait, where that is bounded"
    )
    parser.add_argument("--gen-length", type=int, default=8)
    parser.add_argument(
        "--seconds", type=float, default=15, help="that count, per load"
    )
    parser.add_argument(
        "--warm-up", type=float, default=4, help="s at capacity before every load"
    )
    parser.add_argument(
        "--patience", type=float, default=3, help="limit, in answers at capacity"
    )
    parser.add_argument(
        "--step-ms",
        type=float,
        default=0,
        help="a step takes so long for each of its requests, however fast this machine "
        "could be: for one that others use, too",
    )
    parser.add_argument("--deadline", choices=("client", "server"), default="server")
    parser.add_argument("--server-args", nargs="*", default=[])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--output", type=Path, default=Path("results/goodput/goodput.json")
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    if args.step_ms:
        here = str(Path(__file__).parent)
        paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        os.environ["PACED_STEP_MS"] = str(args.step_ms)
    report = with_environment(args, runs=[])
    chosen = [variant for variant in VARIANTS if variant.name in args.variants]
    servers = dict.fromkeys((v.is_bounded, v.policy) for v in chosen)
    with TemporaryDirectory() as scratch:
        questions: list[dict[str, Any]] = [
            {**question, "png": Path(question["image"]).read_bytes()}
            for question in drawn_questions(Path(scratch), NUM_PICTURES, args.seed)
        ]
        for key in servers:
            alike = [v for v in chosen if (v.is_bounded, v.policy) == key]
            measure(args, alike, questions, report)


if __name__ == "__main__":
    main()
