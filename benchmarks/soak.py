# SPDX-License-Identifier: Apache-2.0
"""Thousands of mixed requests: every one is answered, nothing is left behind.

    python benchmarks/soak.py --output results/soak.json

Sends drawn pictures of ``examples/tiny`` with requests of all modes, streamed or not,
some of them aborted by the client, to a server of its own, and fails if

- a request that was not aborted does not answer with HTTP 200 and text,
- memory grows: the median of the last quarter of the time lies more than
  ``--growth`` percent over that of the third (until then batches of new shapes come,
  for each of which kernels keep some memory),
- KV blocks are held, or requests run or wait, when all is over.

Pictures come round: they are few enough to be in the cache of preprocessed pictures
after the warm-up, whose growth would pass for a leak, and too many for the cache of
encoded ones.
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import requests
from common import with_environment
from serve_load import drawn_questions
from server import (
    CHAT,
    KV_USE,
    RUNNING,
    WAITING,
    Sample,
    Sampler,
    Server,
    chat_body,
    serve,
    summarise,
)

MODEL = "lladav-tiny"
NUM_PICTURES = 100
REQUEST_SECONDS = 600
ABORT_SECONDS = 1.5

# Share of the requests, and their ``vllm_xargs``.
KINDS: dict[str, tuple[int, dict[str, Any]]] = {
    "exact": (3, {"denoising": "exact", "prune_rate": 0}),
    "fast": (3, {"denoising": "fast", "prune_rate": 0}),
    "pruned": (3, {"denoising": "exact", "prune_rate": 0.75}),
    "fast+pruned": (3, {"denoising": "fast", "prune_rate": 0.75}),
    "prompt cache": (2, {"cache": "prompt", "prune_rate": 0}),
    "guided": (1, {"cfg_scale": 0.5, "prune_rate": 0}),
    "guided+pruned": (1, {"cfg_scale": 0.5, "prune_rate": 0.5}),
}


@dataclass(frozen=True)
class Planned:
    """One request; ``abort_after`` so many seconds the client hangs up, if at all."""

    number: int
    kind: str
    stream: bool
    max_tokens: int
    abort_after: float | None


@dataclass(frozen=True)
class Outcome:
    """What became of a request: answered, aborted, or failed for a ``reason``."""

    kind: str
    state: str
    seconds: float
    reason: str = ""


def plan(number: int, seed: int, abort_share: float) -> Planned:
    """The same for the same arguments."""
    rng = random.Random(f"{seed} {number}")
    weights = [weight for weight, _ in KINDS.values()]
    kind = rng.choices(list(KINDS), weights)[0]
    abort = rng.random() < abort_share
    return Planned(
        number=number,
        kind=kind,
        stream=rng.random() < 0.5,
        max_tokens=rng.choice((16, 32, 32, 48)),
        abort_after=rng.uniform(0.05, ABORT_SECONDS) if abort else None,
    )


def memory_growth(samples: Sequence[Sample]) -> dict[str, Any] | None:
    """Medians of the quarters of the time, MB, and the growth from the third to the
    last; None if there is too little."""
    quarter = len(samples) // 4
    if quarter < 4:
        return None
    medians = [
        statistics.median(s.rss_bytes / 1e6 for s in samples[start:][:quarter])
        for start in (0, quarter, 2 * quarter, len(samples) - quarter)
    ]
    return {
        "quarters_mb": [round(median) for median in medians],
        "growth_mb": medians[3] - medians[2],
        "growth_percent": 100 * (medians[3] / medians[2] - 1),
    }


def streamed_text(lines: Sequence[str]) -> str:
    """The answer in server-sent events."""
    text = ""
    for line in lines:
        data = line.removeprefix("data:").strip()
        if line.startswith("data:") and data != "[DONE]":
            for choice in json.loads(data).get("choices", ()):
                text += choice["delta"].get("content") or ""
    return text


async def answer(session: aiohttp.ClientSession, body: dict[str, Any]) -> str:
    """The text; raises what goes wrong."""
    async with session.post(CHAT, json=body) as response:
        text = await response.text()
        if response.status != 200:
            raise RuntimeError(f"HTTP {response.status}: {text[:200]}")
    if body["stream"]:
        return streamed_text(text.splitlines())
    return json.loads(text)["choices"][0]["message"]["content"] or ""


async def send(
    session: aiohttp.ClientSession, planned: Planned, questions: list[dict[str, Any]]
) -> Outcome:
    question = questions[planned.number % len(questions)]
    body = chat_body(
        MODEL,
        question["png"],
        question["question"],
        max_tokens=planned.max_tokens,
        stream=planned.stream,
        vllm_xargs=KINDS[planned.kind][1],
    )
    start = time.monotonic()

    def outcome(state: str, reason: str = "") -> Outcome:
        return Outcome(planned.kind, state, time.monotonic() - start, reason)

    try:
        async with asyncio.timeout(planned.abort_after or REQUEST_SECONDS):
            text = await answer(session, body)
    except TimeoutError:
        if planned.abort_after is not None:
            return outcome("aborted")
        return outcome("failed", f"no answer within {REQUEST_SECONDS} s")
    except (aiohttp.ClientError, RuntimeError, ValueError, KeyError) as error:
        return outcome("failed", repr(error))
    return outcome("answered") if text.strip() else outcome("failed", "no text")


async def send_all(
    url: str, plans: Iterator[Planned], questions: list[dict[str, Any]], slots: int
) -> list[Outcome]:
    """All requests, ``slots`` of them at any time."""
    outcomes: list[Outcome] = []

    async def work(session: aiohttp.ClientSession) -> None:
        for planned in plans:
            outcomes.append(await send(session, planned, questions))
            if len(outcomes) % 200 == 0:
                print(f"  {len(outcomes)} requests", flush=True)

    # Aborting closes the connection, which is how the server learns of it.
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        url, connector=connector, timeout=timeout
    ) as session:
        await asyncio.gather(*(work(session) for _ in range(slots)))
    return outcomes


def leftovers(server: Server, questions: list[dict[str, Any]]) -> dict[str, Any]:
    """What is still in use once everything is over.

    One more request comes first: gauges are set by iterations, and none need follow
    the last abort.
    """
    try:
        server.wait_until_idle()
        last = iter([Planned(0, "exact", False, 16, None)])
        (outcome,) = asyncio.run(send_all(server.url, last, questions, 1))
        values = server.wait_until_idle()
    except requests.RequestException:
        return {"the server": "gone"}
    found = {name: values[name] for name in (KV_USE, RUNNING, WAITING)}
    return found if outcome.state == "answered" else {**found, "last": outcome.reason}


def by_kind(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """Counts, and seconds of the answered."""
    rows = {}
    for kind in KINDS:
        mine = [outcome for outcome in outcomes if outcome.kind == kind]
        seconds = [outcome.seconds for outcome in mine if outcome.state == "answered"]
        rows[kind] = {
            **Counter(outcome.state for outcome in mine),
            "seconds_p50": statistics.median(seconds) if seconds else None,
            "seconds_max": max(seconds, default=None),
        }
    return rows


def problems(report: dict[str, Any], most_growth: float) -> list[str]:
    """Why the soak failed; empty if it did not."""
    found = [f"{n} times {reason}" for reason, n in report["failures"].items()]
    found += [f"{name} is {v}" for name, v in report["leftovers"].items() if v]
    memory = report["memory"]
    if memory and memory["growth_percent"] > most_growth:
        found.append(f"memory grew by {memory['growth_percent']:.1f}%")
    return found


def run(args: argparse.Namespace, log: Path) -> dict[str, Any]:
    flags = [
        *("--plugin", "pruning", "--dtype", "float32"),
        # A guided request counts as two.
        *("--max-num-seqs", str(2 * args.concurrency)),
        *("--max-num-batched-tokens", "8192"),
    ]
    with TemporaryDirectory() as scratch, serve(MODEL, flags, log) as server:
        questions: list[dict[str, Any]] = [
            {**question, "png": Path(question["image"]).read_bytes()}
            for question in drawn_questions(Path(scratch), NUM_PICTURES, args.seed)
        ]
        plans = (plan(n, args.seed, args.abort_share) for n in range(args.requests))
        start = time.monotonic()
        with Sampler(server, args.interval) as sampler:
            outcomes = asyncio.run(
                send_all(server.url, plans, questions, args.concurrency)
            )
        seconds = time.monotonic() - start
        left = leftovers(server, questions)
    return with_environment(
        args,
        server_flags=flags,
        seconds=seconds,
        states=Counter(outcome.state for outcome in outcomes),
        kinds=by_kind(outcomes),
        failures=Counter(o.reason for o in outcomes if o.state == "failed"),
        memory=memory_growth(sampler.samples),
        leftovers=left,
        **summarise(sampler.samples),
        rss_mb=[(round(s.seconds, 1), s.rss_bytes / 1e6) for s in sampler.samples],
    )


def show(report: dict[str, Any]) -> None:
    states = ", ".join(f"{n} {state}" for state, n in report["states"].items())
    print(f"{states} in {report['seconds']:.0f} s")
    for kind, row in report["kinds"].items():
        print(f"  {kind:14s} {row}")
    print(f"  at most {report['running_peak']} at once; left: {report['leftovers']}")
    print(f"  memory {report['memory'] or 'too few samples'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--abort-share", type=float, default=0.04)
    parser.add_argument("--growth", type=float, default=3.0, help="percent, at most")
    parser.add_argument("--interval", type=float, default=1.0, help="s between samples")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("results/soak/soak.json"))
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    report = run(args, args.output.with_suffix(".log"))
    report["problems"] = problems(report, args.growth)
    args.output.write_text(json.dumps(report, indent=2))
    show(report)
    if report["problems"]:
        raise SystemExit("; ".join(report["problems"]))


if __name__ == "__main__":
    main()
