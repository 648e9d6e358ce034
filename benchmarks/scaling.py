# SPDX-License-Identifier: Apache-2.0
"""How cost grows, measured, next to what the capacity model computes.

    python benchmarks/scaling.py

One engine answers requests with images that it has not seen, while one thing grows at
a time: tiles of an image, canvas length, requests at once, images of a request. Next
to each measurement stands what ``vllm_lladav.tools.capacity`` computes for it from
figures that were measured in the same run (``calibration.py``): the rate of matrix
products, the memory bandwidth, and the overhead of a step. Requests start together, so
what is computed is ``Capacity.burst_seconds``. ``docs/capacity.md`` has the results.
"""

import argparse
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from calibration import Calibration, take_seconds
from common import MODEL_ARGUMENT, noise_images, write_figures
from engine import DEPLOYED, TEXT_TOKENS, ask, engine_options
from scaling_cases import SWEEPS, Case, cases

from vllm_lladav.tools.capacity.engine import Engine
from vllm_lladav.tools.capacity.machine import describe
from vllm_lladav.tools.capacity.model import Capacity
from vllm_lladav.tools.capacity.request import Images, make_plan
from vllm_lladav.tools.capacity.step import step_parts
from vllm_lladav.tools.checkpoint import read_checkpoint
from vllm_lladav.tools.engine import start_engine

KV_BLOCK = 128  # Tokens per block on CPUs.
DTYPE_BYTES = 4


class Bench:
    """An engine, the model's dimensions and the machine's figures."""

    def __init__(self, model: str, chosen: list[Case]) -> None:
        self.checkpoint = read_checkpoint(model)
        lengths = {case: self.longest(case) for case in chosen}
        blocks = max(case.requests * -(-lengths[case] // KV_BLOCK) for case in chosen)
        self.budget = max(case.requests * lengths[case] for case in chosen)
        per_token = 2 * self.checkpoint.shape.num_layers * self._kv_width * DTYPE_BYTES
        options = engine_options(
            longest=max(lengths.values()) + 1,
            num_requests=max(8, *(case.requests for case in chosen)),
            max_num_batched_tokens=self.budget,
            kv_cache_memory_bytes=(blocks + 1) * KV_BLOCK * per_token,
            limit_mm_per_prompt={"image": max(len(case.tiles) for case in chosen)},
        )
        self.llm = start_engine(model, DEPLOYED, **options)
        self.calibration = Calibration(self.llm)

    @property
    def _kv_width(self) -> int:
        return self.checkpoint.shape.num_kv_heads * self.checkpoint.shape.head_dim

    def longest(self, case: Case) -> int:
        """Tokens of a request, at most."""
        tokens, _ = self.checkpoint.visual(self.sizes(case), case.mode)
        return sum(tokens) + TEXT_TOKENS + case.gen_length

    def sizes(self, case: Case) -> list[tuple[int, int]]:
        """Of its images, in pixels."""
        side = self.checkpoint.tile_size
        return [(side * width, side * height) for width, height in case.tiles]

    def run(self, case: Case, steps: int) -> dict[str, Any]:
        """Seconds, and the request as it was."""
        requests = [
            [noise_images(size, 1)[0] for size in self.sizes(case)]
            for _ in range(case.requests)
        ]
        self.llm.collective_rpc(take_seconds)
        run = ask(
            self.llm,
            requests,
            case.gen_length,
            image_mode=case.mode,
            block_length=case.gen_length,
            steps=steps,
            cache=case.cache,
            refresh_interval=steps,
        )
        (seconds,) = self.llm.collective_rpc(take_seconds)
        assert run.steps == steps, run.reports
        return {
            "seconds": run.wall,
            "seconds_of_parts": {**seconds, "rest": run.wall - sum(seconds.values())},
            "prompt_tokens": len(run.prompts[0]),
            "visual_tokens": run.reports[0]["visual_tokens"],
        }

    def predict(
        self, case: Case, found: dict[str, Any], machine: Any
    ) -> dict[str, Any]:
        """Seconds by the capacity model, and by part."""
        tokens, num_tiles = self.checkpoint.visual(self.sizes(case), case.mode)
        assert sum(tokens) == found["visual_tokens"], (tokens, found)
        plan = make_plan(
            Images(tokens, num_tiles),
            num_layers=self.checkpoint.shape.num_layers,
            text_tokens=found["prompt_tokens"] - sum(tokens),
            gen_length=case.gen_length,
            block_length=case.gen_length,
            steps=case.steps,
            cache=case.cache,
            refresh_interval=case.steps,
        )
        engine = Engine(
            self.checkpoint.shape,
            max_batched_tokens=self.budget,
            dtype_bytes=DTYPE_BYTES,
            block_size=KV_BLOCK,
            on_cpu=True,
        )
        capacity = Capacity(machine, engine, plan, num_tiles)
        seconds: dict[str, float] = {}
        for load in capacity.load.steps:
            for part in step_parts(machine, engine, load.times(case.requests)):
                seconds[part.name] = seconds.get(part.name, 0) + part.seconds
        return {
            "predicted": capacity.burst_seconds(case.requests),
            "predicted_of_parts": {
                "decoder": seconds["projections"] + seconds["attention"],
                "head": seconds["head"],
                "vision": seconds.get("vision", 0),
                "rest": seconds["overhead"],
            },
            "tiles": num_tiles,
        }


def measure(bench: Bench, case: Case, repeats: int) -> dict[str, Any]:
    """The median run."""
    # Kernels are prepared for these shapes.
    bench.run(case, 1 if case.cache == "none" else 2)
    runs = [bench.run(case, case.steps) for _ in range(repeats)]
    runs.sort(key=lambda run: run["seconds"])
    every = [run["seconds"] for run in runs]
    return {**runs[(repeats - 1) // 2], "seconds_of_repeats": every}


def measure_all(bench: Bench, chosen: list[Case], repeats: int) -> list[dict[str, Any]]:
    """The machine's rates are measured before every sweep and at the end."""
    found = []
    sweep = None
    for case in chosen:
        if case.sweep != sweep:
            bench.calibration.rates()
            sweep = case.sweep
        found.append(measure(bench, case, repeats))
        print(f"{sweep} {case.value}: {found[-1]['seconds']:.2f} s", flush=True)
    bench.calibration.rates()
    machine = bench.calibration.machine()
    return [
        {**asdict(case), **row, **bench.predict(case, row, machine)}
        for case, row in zip(chosen, found, strict=True)
    ]


def show(row: dict[str, Any]) -> None:
    parts = ", ".join(
        f"{name} {row['predicted_of_parts'][name]:.2f}/{seconds:.2f}"
        for name, seconds in row["seconds_of_parts"].items()
    )
    print(
        f"{row['sweep']:11s} {row['value']:3d}: {row['predicted']:7.2f} s computed, "
        f"{row['seconds']:7.2f} s measured, ratio "
        f"{row['predicted'] / row['seconds']:4.2f} (computed/measured: {parts})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog="Runs on a quiet machine only mean something.",
    )
    parser.add_argument("--model", **MODEL_ARGUMENT)
    parser.add_argument("--sweeps", nargs="+", choices=SWEEPS, default=list(SWEEPS))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller")
    parser.add_argument(
        "--output", type=Path, help="figures as JSON; a plot is written next to it"
    )
    args = parser.parse_args()
    chosen = [case for case in cases(args.quick) if case.sweep in args.sweeps]
    bench = Bench(args.model, chosen)
    rows = measure_all(bench, chosen, args.repeats)
    print(f"\n--cpu --machine {describe(bench.calibration.machine())}")
    for row in rows:
        show(row)
    ratios = [row["predicted"] / row["seconds"] for row in rows]
    print(
        f"computed/measured: median {statistics.median(ratios):.2f}, "
        f"from {min(ratios):.2f} to {max(ratios):.2f}"
    )
    write_figures(
        args,
        calibration=asdict(bench.calibration.machine()),
        peaks=bench.calibration.peaks,
        bandwidths=bench.calibration.bandwidths,
        runs=rows,
    )
    if args.output:
        from scaling_plot import draw

        draw(rows, args.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
