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
import random
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from against_comparisons import (
    CONCURRENCY,
    FOUR_TILES,
    GEN_LENGTH,
    SQUARE,
    Figures,
    compare_approximate,
    compare_concurrent,
    compare_exact,
)
from common import MODEL_ARGUMENT, Target, noise_images, with_environment
from engine import DEPLOYED, TEXT_TOKENS, engine_options
from PIL import Image
from plain_loop import PlainLladav, keep_freed_memory

from vllm_lladav.model.lladav.anyres import largest_image, num_visual_tokens
from vllm_lladav.tiny import TRAINED
from vllm_lladav.tools.engine import running_engine

_seeds = count(1)

COMPARISONS = ("exact", "concurrent", "approximate")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    only_directories = "directory; mid is the mid-size random checkpoint (default)"
    parser.add_argument("--model", **{**MODEL_ARGUMENT, "help": only_directories})
    parser.add_argument(
        "--steps", type=int, default=8, help="of exact denoising (default: 8)"
    )
    parser.add_argument("--plain-steps", type=int, default=2, help="that are scaled")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--dtype",
        default="float32",
        help="of the engine; the plain loop's is float32, and tokens are equal with "
        "float32 only (default: float32)",
    )
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
        help="2 steps, 1 repeat, one approximate preset",
    )
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    if args.quick:
        args.steps, args.plain_steps, args.repeats = 2, 1, 1
    if args.steps < 2:
        parser.error("--steps must be at least 2")
    return args


def running(
    model: str | Path, num_visual: int, dtype: str
) -> AbstractContextManager[Any]:
    """An engine as it is deployed, for requests of ``num_visual`` visual tokens at
    most."""
    longest = num_visual + TEXT_TOKENS + GEN_LENGTH
    options = engine_options(longest, CONCURRENCY, dtype=dtype)
    return running_engine(model, DEPLOYED, **options)


def drawn_images(number: int) -> list[Image.Image]:
    """Pictures of the kind that ``lladav-tiny`` was trained on; every call returns
    others of the same sizes."""
    directory = str(Path(__file__).parents[1] / "examples" / "tiny")
    if directory not in sys.path:
        sys.path.append(directory)
    import pictures

    sizes = list(pictures.SIZES)
    found = []
    for index in range(number):
        rng = random.Random(next(_seeds))
        scene = pictures.draw_scene(rng, "heldout", sizes[index % len(sizes)])
        found.append(pictures.draw(scene, rng).image)
    return found


def compare(args: argparse.Namespace) -> Iterator[tuple[str, Figures, list[Target]]]:
    """Name, figures and targets of one comparison after the other."""
    plain = PlainLladav(Path(args.model))
    sizes = SQUARE, FOUR_TILES
    num_visual = max(num_visual_tokens(*s, plain.vision.geometry) for s in sizes)
    with running(args.model, num_visual, args.dtype) as llm:
        if not args.fresh_memory:
            keep_freed_memory()  # Of this process, not the engine's.
        if "exact" in args.only:
            yield "exact", *compare_exact(llm, plain, args)
        if "concurrent" in args.only:
            draw = partial(noise_images, SQUARE)
            yield "concurrent", *compare_concurrent(llm, draw, args.steps, 1.15, args)
        if "approximate" in args.only:
            yield "approximate", *compare_approximate(llm, plain, args)
    if "concurrent" in args.only:
        plain = PlainLladav(TRAINED)
        geometry = plain.vision.geometry
        num_visual = num_visual_tokens(*largest_image(geometry), geometry)
        with running(TRAINED, num_visual, args.dtype) as llm:
            # The model is so small that a whole answer takes a second.
            found = compare_concurrent(llm, drawn_images, GEN_LENGTH, 3.5, args, plain)
            yield "concurrent, lladav-tiny", *found


def main() -> None:
    args = parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # Takes minutes; may be piped.
    report: Figures = with_environment(args, comparisons={}, targets=[])
    for name, figures, targets in compare(args):
        for target in targets:
            print(f"{name}: {target}")
        report["comparisons"][name] = figures
        report["targets"] += [
            {**target.as_json(), "name": f"{name}: {target.name}"} for target in targets
        ]
        if args.output:  # After each: what was measured outlives an interruption.
            args.output.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
