# SPDX-License-Identifier: Apache-2.0
"""The engine against a plain PyTorch loop on the same checkpoint and requests.

    python benchmarks/against_plain.py

The plain loop (``plain_loop.py``) computes what the official code does, one request at
a time; the engine is ``vllm.LLM`` with the engine core in a process of its own. They
run in turns, so that a busy machine slows both, and medians of the repeats are
compared:

exact        one request with a square image, denoised exactly: engine against plain
             loop, whose tokens must be the same.
concurrent   exact requests at once against one at a time; also with ``lladav-tiny``
             and drawn pictures.
approximate  requests with four tiles at once: pruning against exact denoising, and
             pruning with the dual cache against the plain loop.

Every exact step costs the same. So the first two take few steps, which unmask many
positions each, and the third one scales a few steps to one per position: of the plain
loop by the mean step, of exact and pruned denoising from runs with 1 and ``--steps``
steps. The presets with a cache run in full.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from against_comparisons import (
    FOUR_TILES,
    SQUARE,
    Figures,
    Target,
    compare_approximate,
    compare_concurrent,
    compare_exact,
)
from against_engine import GEN_LENGTH, drawn, noise, running
from common import machine
from plain_loop import PlainLladav, keep_freed_memory

from vllm_lladav.model.lladav.anyres import largest_image, num_visual_tokens
from vllm_lladav.tiny import TRAINED
from vllm_lladav.tools.eval.environment import environment

COMPARISONS = ("exact", "concurrent", "approximate")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--model", type=Path, help="checkpoint; default: the mid-size random one"
    )
    parser.add_argument(
        "--steps", type=int, default=8, help="of exact denoising (default: 8)"
    )
    parser.add_argument("--plain-steps", type=int, default=2, help="that are scaled")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rate", type=float, default=0.75, help="prune rate")
    parser.add_argument("--threshold", type=float, default=0.1, help="of confidence")
    parser.add_argument(
        "--only", nargs="+", choices=COMPARISONS, default=list(COMPARISONS)
    )
    parser.add_argument(
        "--fresh-memory",
        action="store_true",
        help="let the plain loop ask the system for the memory of its logits in every "
        "step, as PyTorch does by itself; slower by its page faults",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="2 steps, 1 repeat, no warm-up where that takes long, not lladav-tiny, "
        "one approximate preset",
    )
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    if args.quick:
        args.steps, args.plain_steps, args.repeats = 2, 1, 1
    if args.steps < 2:
        parser.error("--steps must be at least 2")
    if args.model is None:
        from midsize import ensure_midsize

        args.model = ensure_midsize()
    return args


def compare(args: argparse.Namespace) -> Iterator[tuple[str, Figures, list[Target]]]:
    """Name, figures and targets of one comparison after the other."""
    plain = PlainLladav(args.model)
    sizes = SQUARE, FOUR_TILES
    num_visual = max(num_visual_tokens(*s, plain.vision.geometry) for s in sizes)
    with running(args.model, num_visual) as engine:
        if not args.fresh_memory:
            keep_freed_memory()  # Of this process, not the engine's.
        if "exact" in args.only:
            yield "exact", *compare_exact(engine, plain, args)
        if "concurrent" in args.only:
            draw = partial(noise, SQUARE)
            yield "concurrent", *compare_concurrent(engine, draw, args.steps, args)
        if "approximate" in args.only:
            yield "approximate", *compare_approximate(engine, plain, args)
    if "concurrent" in args.only and not args.quick:
        plain = PlainLladav(TRAINED)
        geometry = plain.vision.geometry
        num_visual = num_visual_tokens(*largest_image(geometry), geometry)
        with running(TRAINED, num_visual) as engine:
            # The model is so small that a whole answer takes a second.
            found = compare_concurrent(engine, drawn, GEN_LENGTH, args, plain)
            yield "concurrent, lladav-tiny", *found


def main() -> None:
    args = parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # Takes minutes; may be piped.
    report: Figures = {
        "machine": machine(),
        "commit": environment()["commit"],
        "settings": {**vars(args), "model": args.model.name, "output": None},
        "comparisons": {},
    }
    for name, figures, targets in compare(args):
        for target in targets:
            print(f"{name}: {target}")
        judged = [{**t._asdict(), "is_reached": t.is_reached} for t in targets]
        report["comparisons"][name] = {**figures, "targets": judged}
        if args.output:  # After each: what was measured outlives an interruption.
            args.output.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
