# SPDX-License-Identifier: Apache-2.0
"""How long running requests wait for the first steps of new ones.

    python benchmarks/stall.py

Requests with a dual cache denoise, each step a few rows; then as many new ones with an
image come at once, whose first steps compute everything. The engine is driven iteration
by iteration, without and with a limit on full steps (``--full-step-tokens``). Printed
are the longest iteration that a running request waits for, when the new requests had
their first steps, and the time until all were done.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from common import (
    MODEL_ARGUMENT,
    noise_images,
    parse_size,
    render_question,
    write_figures,
)
from engine import CORE_HERE, engine_options, sampling

from vllm_lladav.tools.engine import engine_core, start_engine

CONTEXT = 2048


class Bench:
    """One engine; the limit is set on its scheduler between runs."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        options = engine_options(CONTEXT, args.running + args.new)
        self.llm = start_engine(args.model, CORE_HERE, **options)
        self.scheduler: Any = engine_core(self.llm).scheduler
        self.prompt = render_question(self.llm.get_tokenizer())

    def add(self, names: list[str]) -> None:
        """Queue requests with images that the engine has not seen."""
        length = self.args.gen_length
        params = sampling(
            length, block_length=length, cache="dual", refresh_interval=length
        )
        images = noise_images(self.args.image, len(names))
        for name, image in zip(names, images, strict=True):
            prompt = {"prompt": self.prompt, "multi_modal_data": {"image": image}}
            self.llm.llm_engine.add_request(name, prompt, params)

    def run(self, limit: int) -> dict[str, Any]:
        """Seconds. ``limit`` is that of ``--full-step-tokens``."""
        self.scheduler._full_step_tokens = limit
        old = [f"old{i}" for i in range(self.args.running)]
        new = [f"new{i}" for i in range(self.args.new)]
        self.add(old)
        for _ in range(4):
            self.llm.llm_engine.step()
        self.add(new)
        start = time.perf_counter()
        iterations: list[float] = []  # While an old request runs.
        first_steps: list[float] = []
        done: dict[str, float] = {}
        num_seen = self.args.running
        while self.llm.llm_engine.has_unfinished_requests():
            before = time.perf_counter()
            outputs = self.llm.llm_engine.step()
            now = time.perf_counter()
            if not set(old) <= done.keys():
                iterations.append(now - before)
            done |= {o.request_id: now - start for o in outputs if o.finished}
            num_ran = len(self.scheduler.running) + len(done)
            first_steps += [now - start] * (num_ran - num_seen)
            num_seen = max(num_seen, num_ran)
        return {
            "limit": limit,
            "longest_iteration": max(iterations),
            "median_iteration": statistics.median(iterations),
            "mean_first_step": statistics.mean(first_steps),
            "last_first_step": max(first_steps),
            "mean_old_done": statistics.mean(done[name] for name in old),
            "all_done": max(done.values()),
        }


def show(row: dict[str, Any]) -> None:
    limit = f"{row['limit']} tokens" if row["limit"] else "no limit"
    print(
        f"{limit:12s}: longest iteration {row['longest_iteration']:6.2f} s "
        f"(median {row['median_iteration']:.3f}), first steps of new requests after "
        f"{row['mean_first_step']:.2f} s on average, {row['last_first_step']:.2f} s at "
        f"most, running requests done after {row['mean_old_done']:.2f} s, all after "
        f"{row['all_done']:.2f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", **MODEL_ARGUMENT)
    parser.add_argument("--running", type=int, default=4)
    parser.add_argument("--new", type=int, default=4)
    parser.add_argument("--gen-length", type=int, default=32)
    parser.add_argument("--image", type=parse_size, default=(384, 384), metavar="WxH")
    parser.add_argument("--limits", type=int, nargs="+", default=[0, 2048, 4096])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    bench = Bench(args)
    bench.run(args.limits[0])  # Kernels are prepared for these shapes.
    rows = [bench.run(limit) for _ in range(args.repeats) for limit in args.limits]
    for row in rows:
        show(row)
    write_figures(args, runs=rows)


if __name__ == "__main__":
    main()
