# SPDX-License-Identifier: Apache-2.0
"""Two data-parallel engines with half of the cores each against one with all.

    python benchmarks/data_parallel.py

Starts a server for each, one after the other, and sends both the same requests, all at
once, with images that they have not seen: denoised exactly, and with the prompt cache.
A rank is bound to its cores by ``VLLM_CPU_OMP_THREADS_BIND``.
"""

import argparse
import os
import re
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import requests
from common import (
    MODEL_ARGUMENT,
    QUESTION,
    Target,
    noise_images,
    parse_size,
    write_figures,
)
from server import Server, serve

BIND = "VLLM_CPU_OMP_THREADS_BIND"
MODES: dict[str, dict[str, Any]] = {
    "exact": {"cache": "none"},
    "prompt": {"cache": "prompt", "refresh_interval": 25},
}


def binding(cores: list[int], ranks: int) -> str:
    """An equal share of the cores for each rank, such as ``0|1``."""
    share = len(cores) // ranks
    shares = [cores[rank * share : (rank + 1) * share] for rank in range(ranks)]
    return "|".join(",".join(map(str, part)) for part in shares)


def ask(server: Server, args: argparse.Namespace, mode: str, steps: int) -> None:
    """One request with a picture of its own."""
    lengths = {"gen_length": args.gen_length, "block_length": args.gen_length}
    (image,) = noise_images(args.image, 1)
    server.ask(
        args.model,
        image,
        QUESTION,
        max_tokens=args.gen_length,
        ignore_eos=True,
        vllm_xargs={**lengths, "steps": steps, **MODES[mode]},
    )


def send(server: Server, args: argparse.Namespace, mode: str, steps: int) -> float:
    """All requests at once; seconds until the last answer."""
    start = time.monotonic()
    with ThreadPoolExecutor(args.requests) as pool:
        futures = [
            pool.submit(ask, server, args, mode, steps) for _ in range(args.requests)
        ]
        for future in futures:
            future.result()
    return time.monotonic() - start


def steps_by_engine(server: Server) -> dict[str, float]:
    """Denoising steps of requests so far, by data-parallel rank."""
    text = requests.get(f"{server.url}/metrics", timeout=30).text
    pattern = r'^lladav:denoising_steps_total{engine="(\d+)".*} (\S+)$'
    found = re.findall(pattern, text, re.MULTILINE)
    return {engine: float(value) for engine, value in found}


def measure(args: argparse.Namespace, ranks: int) -> list[dict[str, Any]]:
    """A server with so many ranks, in every mode."""
    flags = [
        *("--dtype", "float32", "--data-parallel-size", str(ranks)),
        *("--max-num-seqs", str(max(args.requests, 2))),
        *("--max-model-len", str(args.max_model_len)),
        *("--max-num-batched-tokens", str(args.requests * args.max_model_len)),
    ]
    os.environ[BIND] = binding(args.cores, ranks)
    rows = []
    with (
        TemporaryDirectory() as scratch,
        serve(args.model, flags, Path(scratch, "log")) as server,
    ):
        for mode in args.modes:
            send(server, args, mode, steps=2)  # Kernels are prepared.
            server.wait_until_idle()
            before = steps_by_engine(server)
            seconds = send(server, args, mode, args.steps)
            server.wait_until_idle()
            after = steps_by_engine(server)
            rows.append(
                {
                    "ranks": ranks,
                    "binding": os.environ[BIND],
                    "mode": mode,
                    "seconds": seconds,
                    "requests_per_s": args.requests / seconds,
                    "canvas_tokens_per_s": args.requests * args.gen_length / seconds,
                    "steps_by_engine": {
                        engine: value - before.get(engine, 0)
                        for engine, value in after.items()
                    },
                }
            )
            show(rows[-1])
    return rows


def show(row: dict[str, Any]) -> None:
    shares = ", ".join(
        f"{engine}: {steps:.0f}" for engine, steps in row["steps_by_engine"].items()
    )
    print(
        f"{row['ranks']} rank(s) on cores {row['binding']}, {row['mode']:6s}: "
        f"{row['seconds']:6.2f} s, {row['requests_per_s']:6.3f} requests/s, "
        f"{row['canvas_tokens_per_s']:6.1f} canvas tokens/s (steps by engine: "
        f"{shares})",
        flush=True,
    )


def compare(rows: list[dict[str, Any]], mode: str) -> Iterator[Target]:
    """The throughput of one engine against that of several, means of the runs."""
    runs: dict[int, list[float]] = {}
    for row in rows:
        if row["mode"] == mode:
            runs.setdefault(row["ranks"], []).append(row["seconds"])
    seconds = {ranks: statistics.mean(times) for ranks, times in runs.items()}
    for ranks in seconds.keys() - {1}:
        if 1 in seconds:
            name = f"{mode}: throughput, one engine / {ranks} ranks"
            yield Target(name, seconds[ranks] / seconds[1], 0.95)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", **MODEL_ARGUMENT)
    parser.add_argument(
        "--ranks",
        type=int,
        nargs="+",
        default=[1, 2],
        help="one server after the other; 1 2 1 2 takes the means of two runs each",
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--requests", type=int, default=8, help="all at once")
    parser.add_argument(
        "--image", type=parse_size, default=(384, 384), metavar="WxH", help="pixels"
    )
    parser.add_argument("--gen-length", type=int, default=32)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument(
        "--max-model-len", type=int, default=2048, help="prompt and canvas fit into it"
    )
    parser.add_argument(
        "--cores",
        type=lambda text: [int(core) for core in text.split(",")],
        default=sorted(os.sched_getaffinity(0)),
        metavar="N,N,...",
        help="that the ranks share (default: all)",
    )
    parser.add_argument("--quick", action="store_true", help="4 requests, 3 steps")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    if parser.parse_known_args()[0].quick:
        parser.set_defaults(requests=4, steps=3)
    args = parser.parse_args()
    if max(args.ranks) > len(args.cores):
        parser.error(f"{max(args.ranks)} ranks need as many cores: {args.cores}")
    return args


def main() -> None:
    args = parse_args()
    rows = [row for ranks in args.ranks for row in measure(args, ranks)]
    targets = [target for mode in args.modes for target in compare(rows, mode)]
    for target in targets:
        print(target)
    write_figures(args, runs=rows, targets=[target.as_json() for target in targets])


if __name__ == "__main__":
    main()
