# SPDX-License-Identifier: Apache-2.0
"""What pruning visual tokens saves: arithmetic counted in the engine, and wall time.

    python benchmarks/pruning_flops.py

Sends one request at a time, with an image that the engine has not seen, with and
without pruning:

1. A counting pass adds up, in the worker, the floating-point operations of every
   matrix product, convolution and attention that runs, from the shapes that the
   kernels are called with. They are compared with the formula of
   ``vllm_lladav/model/flops.py``, which must be within 2%.
2. Timed passes take turns: unpruned, pruned, pruned, unpruned, ... The wall time is
   that of the whole request, image processing included.

"Gain" is the share saved. Wall gain over FLOP gain says how much of the saved
arithmetic is saved time; the table shows where the rest goes. For CPUs
(``flop_probe.py``).
"""

import argparse
import statistics
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import MODEL_ARGUMENT, noise_images, parse_size, write_figures
from engine import DEPLOYED, ask, engine_options
from flop_probe import install_probe, start_request, take_figures

from vllm_lladav.model.flops import Breakdown, request_flops
from vllm_lladav.tools.capacity.request import Images, make_plan
from vllm_lladav.tools.checkpoint import read_checkpoint
from vllm_lladav.tools.engine import start_engine

LARGEST_DEVIATION = 0.02
LARGEST_IMAGE_TOKENS = 4096


class Bench:
    """An engine with the probe, and the settings of all requests."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        options = engine_options(
            LARGEST_IMAGE_TOKENS + args.gen_length, 1, kv_cache_memory_bytes=1 << 28
        )
        self.llm = start_engine(args.model, DEPLOYED, **options)
        self.llm.collective_rpc(install_probe)
        self.checkpoint = read_checkpoint(args.model)
        self.shape = self.checkpoint.shape
        self.layer = args.layer or -(-self.shape.num_layers // 2)

    def run(
        self, size: tuple[int, int], rate: float, steps: int = 0, count: bool = False
    ) -> dict[str, Any]:
        """One request with a new image of noise. Times are in seconds."""
        images = noise_images(size, 1)
        self.llm.collective_rpc(start_request, args=(count,))
        run = ask(
            self.llm,
            [images],
            self.args.gen_length,
            prune_rate=rate,
            prune_layer=self.layer,
            block_length=self.args.gen_length,
            steps=steps or self.args.steps,
        )
        (figures,) = self.llm.collective_rpc(take_figures)
        return {"wall": run.wall, "prompt_len": len(run.prompts[0]), **figures}

    def formula(self, size: tuple[int, int], rate: float, prompt_len: int) -> Breakdown:
        """The same request by the formula."""
        tokens, num_tiles = self.checkpoint.visual([size])
        plan = make_plan(
            Images(tokens, num_tiles),
            text_tokens=prompt_len - sum(tokens),
            num_layers=self.shape.num_layers,
            gen_length=self.args.gen_length,
            block_length=self.args.gen_length,
            steps=self.args.steps,
            prune_rate=rate,
            prune_layer=self.layer,
        )
        return request_flops(self.shape, plan, num_tiles)


def counted_parts(figures: dict[str, Any]) -> dict[str, int]:
    """Counted operations under the names that the formula has for the parts."""
    names = {"decoder": "projections", "pruning": "scores"}
    parts: Counter = Counter()
    for key, flops in figures["flops"].items():
        part = key.split()[1]
        parts[names.get(part, part)] += flops
    return dict(parts)


def time_parts(figures: dict[str, Any]) -> dict[str, float]:
    """Seconds of a request by where they go. They add up to its wall time."""
    seconds = Counter(figures["seconds"])

    def both(*parts: str) -> float:
        return sum(seconds[f"{phase} {p}"] for p in parts for phase in PHASES)

    parts = {
        "vision tower": both("vision"),
        "first step: decoder": seconds["first decoder"] + seconds["first attention"],
        "later steps: linear": seconds["later decoder"],
        "later steps: attention": seconds["later attention"],
        "prune points": both("pruning"),
        "logits": both("head"),
        "passes over logits": both("ranking"),
    }
    return {**parts, "outside the model": figures["wall"] - sum(parts.values())}


PHASES = ("first", "later")


def measure(bench: Bench, size: tuple[int, int]) -> dict[str, Any]:
    """All figures for images of one size."""
    rates = {"unpruned": 0.0, "pruned": bench.args.rate}
    report: dict[str, Any] = {"image": size, "runs": {name: [] for name in rates}}
    for name, rate in rates.items():
        counted = bench.run(size, rate, count=True)
        formula = bench.formula(size, rate, counted["prompt_len"])
        parts = counted_parts(counted)
        report[name] = {
            "prompt_len": counted["prompt_len"],
            "steps": counted["steps"],
            "counted": parts,
            "counted_total": sum(parts.values()),
            "formula": asdict(formula),
            "formula_total": formula.total,
            "deviation": formula.total / sum(parts.values()) - 1,
            "operators": counted["operators"],
        }
    whole, pruned = (report[name]["counted_total"] for name in rates)
    report["flop_gain"] = 1 - pruned / whole
    if not bench.args.repeats:
        return report
    for rate in rates.values():  # Kernels are prepared for these shapes.
        bench.run(size, rate, steps=2)
    for repeat in range(bench.args.repeats):
        for name in list(rates)[:: -1 if repeat % 2 else 1]:
            report["runs"][name].append(bench.run(size, rates[name]))
    add_times(report)
    return report


def add_times(report: dict[str, Any]) -> None:
    """Medians over the repeats, and the loss by part.

    Were all time saved as arithmetic is, every part would take ``1 - flop_gain`` of
    what it takes unpruned; what it takes beyond is its loss. Losses add up to the
    difference of the two gains (nearly, where medians are taken of several repeats).
    """
    walls, parts = {}, {}
    for name, runs in report["runs"].items():
        walls[name] = statistics.median(run["wall"] for run in runs)
        split = [time_parts(run) for run in runs]
        parts[name] = {
            part: statistics.median(each[part] for each in split) for part in split[0]
        }
    report["wall"], report["parts"] = walls, parts
    report["wall_gain"] = 1 - walls["pruned"] / walls["unpruned"]
    report["wall_over_flop_gain"] = report["wall_gain"] / report["flop_gain"]
    report["loss"] = {
        part: (parts["pruned"][part] - (1 - report["flop_gain"]) * seconds)
        / walls["unpruned"]
        for part, seconds in parts["unpruned"].items()
    }


def show(report: dict[str, Any]) -> None:
    width, height = report["image"]
    print(f"\nimage of {width}x{height} pixels")
    for name in ("unpruned", "pruned"):
        row = report[name]
        shares = ", ".join(
            f"{part} {flops / row['counted_total']:.1%}"
            for part, flops in sorted(row["counted"].items(), key=lambda kv: -kv[1])
        )
        print(
            f"  {name:9s} prompt {row['prompt_len']}, {row['steps']} steps: "
            f"{row['counted_total'] / 1e9:.1f} GFLOP counted, "
            f"{row['formula_total'] / 1e9:.1f} by the formula "
            f"({row['deviation']:+.2%})\n            {shares}"
        )
    print(f"  FLOP gain {report['flop_gain']:.1%}")
    if "wall" not in report:
        return
    walls, parts = report["wall"], report["parts"]
    for name, runs in report["runs"].items():
        each = ", ".join(f"{run['wall']:.2f}" for run in runs)
        print(f"  {name:9s} {walls[name]:8.2f} s  ({each})")
    print(
        f"  wall gain {report['wall_gain']:.1%}, "
        f"{report['wall_over_flop_gain']:.2f} of the FLOP gain"
    )
    print(f"  {'':24s}{'unpruned':>10s}{'pruned':>10s}{'loss':>10s}")
    for part, seconds in parts["unpruned"].items():
        print(
            f"  {part:24s}{seconds:8.2f} s{parts['pruned'][part]:8.2f} s"
            f"{report['loss'][part]:10.1%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog="With the defaults about 10 minutes on 2 quiet cores, half of them for "
        "counting; every further repeat adds 5. --image 384x384 takes about 3.",
    )
    parser.add_argument("--model", **MODEL_ARGUMENT)
    parser.add_argument(
        "--image",
        type=parse_size,
        nargs="+",
        default=[(384, 384), (700, 500)],
        metavar="WxH",
        help="pixels; the default is a square and an image of four tiles",
    )
    parser.add_argument("--gen-length", type=int, default=64)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0.75)
    parser.add_argument("--layer", type=int, help="default: half the depth")
    parser.add_argument(
        "--repeats", type=int, default=1, help="timed passes of each; 0: count only"
    )
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()

    bench = Bench(args)
    reports = []
    for size in args.image:
        reports.append(measure(bench, size))
        show(reports[-1])
    write_figures(args, layer=bench.layer, model=asdict(bench.shape), images=reports)
    worst = max(
        abs(report[name]["deviation"])
        for report in reports
        for name in ("unpruned", "pruned")
    )
    if worst > LARGEST_DEVIATION:
        raise SystemExit(f"the formula is {worst:.2%} off what was counted")


if __name__ == "__main__":
    main()
