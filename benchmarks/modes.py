# SPDX-License-Identifier: Apache-2.0
"""What caches, confidence decoding and pruning gain over exact denoising.

    python benchmarks/modes.py

Sends requests with one image each, which the engine has not seen, in every mode, with
and without pruning, alone and all at once, and prints wall time and model FLOPs as
ratios to exact mode in the same run. FLOPs are those of the formula in
``vllm_lladav/model/flops.py`` (``pruning_flops.py`` shows that it counts what runs);
with confidence decoding, whose number of steps is not known before, they are left
out. The checkpoint has random weights: its confidence is low, so the threshold modes
show what a step costs rather than how many a trained model needs.
"""

import argparse
from pathlib import Path
from typing import Any

from common import MODEL_ARGUMENT, noise_images, parse_size, write_figures
from engine import DEPLOYED, Run, ask, engine_options

from vllm_lladav.model.flops import request_flops
from vllm_lladav.tools.capacity.request import Images, make_plan
from vllm_lladav.tools.checkpoint import read_checkpoint
from vllm_lladav.tools.engine import start_engine

LARGEST_REQUEST = 2048  # Tokens of a square image's prompt and the canvas, at most.

MODES: dict[str, dict[str, Any]] = {
    "exact": {"cache": "none"},
    "prompt": {"cache": "prompt", "refresh_interval": 25},
    "prefix": {"cache": "prefix", "refresh_interval": 25},
    "dual": {"cache": "dual", "refresh_interval": 25},
    "threshold": {"cache": "none", "confidence_threshold": 0.1},
    "dual+threshold": {
        "cache": "dual",
        "refresh_interval": 25,
        "confidence_threshold": 0.1,
    },
}


class Bench:
    """An engine and the settings of all requests."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        options = engine_options(LARGEST_REQUEST, max(args.concurrency))
        self.llm = start_engine(args.model, DEPLOYED, **options)
        self.shape = read_checkpoint(args.model).shape

    def run(self, mode: str, rate: float, concurrency: int, steps: int) -> Run:
        """So many requests at once."""
        args = self.args
        return ask(
            self.llm,
            [[image] for image in noise_images(args.image, concurrency)],
            args.gen_length,
            prune_rate=rate,
            block_length=args.block_length,
            steps=steps,
            **MODES[mode],
        )

    def flops(self, mode: str, rate: float, run: Run) -> int | None:
        """Operations of decoder and head for one request; None if the number of its
        steps is not known before."""
        if "confidence_threshold" in MODES[mode]:
            return None
        num_visual = run.reports[0]["visual_tokens"]
        plan = make_plan(
            Images((num_visual,)),
            text_tokens=len(run.prompts[0]) - num_visual,
            num_layers=self.shape.num_layers,
            gen_length=self.args.gen_length,
            block_length=self.args.block_length,
            steps=self.args.steps,
            prune_rate=rate,
            **MODES[mode],
        )
        return request_flops(self.shape, plan).total


def measure(bench: Bench, concurrency: int) -> list[dict[str, Any]]:
    """Every mode with and without pruning."""
    rows: list[dict[str, Any]] = []
    for mode in bench.args.modes:
        for rate in (0.0, bench.args.rate):
            # Kernels are prepared for these shapes.
            bench.run(mode, rate, concurrency, bench.args.gen_length // 8)
            run = bench.run(mode, rate, concurrency, bench.args.steps)
            flops = bench.flops(mode, rate, run)
            rows.append(
                {
                    "mode": mode,
                    "rate": rate,
                    "concurrency": concurrency,
                    "wall": run.wall,
                    "steps": run.steps,
                    "prompt_len": len(run.prompts[0]),
                    "num_visual": run.reports[0]["visual_tokens"],
                    "flops": flops,
                }
            )
            show(rows[-1], rows[0])
    return rows


def show(row: dict[str, Any], exact: dict[str, Any]) -> None:
    wall_ratio = exact["wall"] / row["wall"]
    text = (
        f"{row['concurrency']:2d} at once, {row['mode']:14s} pruned "
        f"{row['rate']:.0%}: {row['wall']:7.2f} s, {wall_ratio:5.1f}x exact, "
        f"{row['steps']:4.1f} steps"
    )
    if row["flops"] is not None:
        flop_gain = 1 - row["flops"] / exact["flops"]
        text += f", {exact['flops'] / row['flops']:5.1f}x fewer FLOPs"
        if flop_gain:
            gain = (1 - row["wall"] / exact["wall"]) / flop_gain
            text += f", wall gain {gain:.2f} of the FLOP gain"
    print(text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog="About 17 minutes on 2 quiet cores without the mode threshold, which "
        "takes nearly as long as exact.",
    )
    parser.add_argument("--model", **MODEL_ARGUMENT)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument(
        "--image", type=parse_size, default=(384, 384), metavar="WxH", help="pixels"
    )
    parser.add_argument("--gen-length", type=int, default=64)
    parser.add_argument("--block-length", type=int, default=16)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0.75, help="prune rate")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    if args.modes[0] != "exact":
        args.modes = ["exact", *(mode for mode in args.modes if mode != "exact")]
    bench = Bench(args)
    rows = [row for n in args.concurrency for row in measure(bench, n)]
    write_figures(args, runs=rows)


if __name__ == "__main__":
    main()
