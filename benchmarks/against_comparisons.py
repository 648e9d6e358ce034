# SPDX-License-Identifier: Apache-2.0
"""The comparisons of ``against_plain.py``: what runs, and the ratios of interest."""

import argparse
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from common import Target, noise_images
from engine import Run, ask
from PIL import Image
from plain_loop import LogitsRows, PlainLladav

GEN_LENGTH = 64
CONCURRENCY = 8
SQUARE, FOUR_TILES = (384, 384), (700, 500)
PLAIN_ROWS: tuple[LogitsRows, ...] = ("all", "canvas")
EXACT: dict[str, Any] = {"cache": "none", "block_length": GEN_LENGTH}
DUAL: dict[str, Any] = {"cache": "dual", "refresh_interval": 25, "steps": GEN_LENGTH}

Figures = dict[str, Any]


def send(llm: Any, images: Sequence[Image.Image], options: dict[str, Any]) -> Run:
    """A request for each picture; nothing is pruned unless ``options`` say so."""
    requests = [[image] for image in images]
    return ask(llm, requests, GEN_LENGTH, **{"prune_rate": 0.0, **options})


def medians(walls: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(seconds) for name, seconds in walls.items()}


def num_equal(found: Sequence[int], expected: Sequence[int]) -> int:
    return sum(a == b for a, b in zip(found, expected, strict=True))


def compare_exact(
    llm: Any, plain: PlainLladav, args: argparse.Namespace
) -> tuple[Figures, list[Target]]:
    """One request: the engine, the plain loop over all rows, and over the canvas."""
    options = {**EXACT, "steps": args.steps}
    # Kernels are prepared, and the plain loop's memory has been in use.
    (image,) = noise_images(SQUARE, 1)
    (prompt,) = send(llm, [image], options).prompts
    for rows in PLAIN_ROWS:
        plain.generate(prompt, image, GEN_LENGTH, GEN_LENGTH, 1, rows)

    walls: dict[str, list[float]] = {"engine": [], "all": [], "canvas": []}
    equal: dict[str, list[int]] = {rows: [] for rows in PLAIN_ROWS}
    for _ in range(args.repeats):
        (image,) = noise_images(SQUARE, 1)
        run = send(llm, [image], options)
        walls["engine"].append(run.wall)
        for rows in PLAIN_ROWS:
            result = plain.generate(
                run.prompts[0], image, GEN_LENGTH, GEN_LENGTH, args.steps, rows
            )
            walls[rows].append(result.wall)
            equal[rows].append(num_equal(run.answers[0], result.tokens))
    median = medians(walls)
    print(
        f"1 request, {args.steps} steps for {GEN_LENGTH} positions: engine "
        f"{median['engine']:.2f} s, plain loop with logits of all rows "
        f"{median['all']:.2f} s, of the canvas {median['canvas']:.2f} s; equal tokens "
        f"per run, of {GEN_LENGTH}: {equal}"
    )
    figures = {"walls": walls, "equal_tokens": equal}
    return figures, [
        Target(f"engine / plain {rows}", median["engine"] / median[rows], goal, True)
        for rows, goal in (("all", 0.8), ("canvas", 0.9))
    ]


def compare_concurrent(
    llm: Any,
    draw: Callable[[int], list[Image.Image]],
    steps: int,
    goal: float,
    args: argparse.Namespace,
    plain: PlainLladav | None = None,
) -> tuple[Figures, list[Target]]:
    """Requests at once against as many, one at a time; ``goal`` is that of their ratio.
    With ``plain``, the latter are asked of it as well, and their tokens compared."""
    options = {**EXACT, "steps": steps}
    for number in (CONCURRENCY, 1):  # Kernels are prepared.
        send(llm, draw(number), {**options, "steps": 1})
    walls: dict[str, list[float]] = {"at once": [], "one by one": []}
    equal = []
    for _ in range(args.repeats):
        walls["at once"].append(send(llm, draw(CONCURRENCY), options).wall)
        images = draw(CONCURRENCY)
        runs = [send(llm, [image], options) for image in images]
        walls["one by one"].append(sum(run.wall for run in runs))
        if plain is None:
            continue
        results = [
            plain.generate(
                run.prompts[0], image, GEN_LENGTH, GEN_LENGTH, steps, "canvas"
            )
            for image, run in zip(images, runs, strict=True)
        ]
        plain_wall = sum(result.wall for result in results)
        walls.setdefault("plain loop, canvas", []).append(plain_wall)
        equal += [
            num_equal(run.answers[0], result.tokens)
            for run, result in zip(runs, results, strict=True)
        ]
    median = medians(walls)
    seconds = ", ".join(f"{name} {wall:.2f} s" for name, wall in median.items())
    print(
        f"{CONCURRENCY} requests, {steps} steps for {GEN_LENGTH} positions: {seconds}"
    )
    if plain:
        print(f"  equal tokens per request, of {GEN_LENGTH}: {equal}")
    ratio = median["one by one"] / median["at once"]
    figures = {"walls": walls, "steps": steps, "equal_tokens": equal}
    targets = [Target("throughput, at once / one by one", ratio, goal)]
    if plain:
        ratio = median["one by one"] / median["plain loop, canvas"]
        targets.append(Target("one by one / plain loop, canvas", ratio, 1.2, True))
    return figures, targets


def approximate_presets(threshold: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and options: caches with and without a confidence threshold."""
    for block_length in (16, 32):
        preset = {**DUAL, "block_length": block_length}
        yield f"pruned, dual, blocks of {block_length}", preset
        preset = {**preset, "confidence_threshold": threshold}
        yield f"pruned, dual, blocks of {block_length}, threshold {threshold}", preset


def compare_approximate(
    llm: Any, plain: PlainLladav, args: argparse.Namespace
) -> tuple[Figures, list[Target]]:
    """Requests with four tiles: seconds for one, alone (plain loop) or as its share of
    a batch, at one step per position or as many as a threshold takes."""
    presets = {
        name: options
        for name, options in approximate_presets(args.threshold)
        if not args.quick or name.endswith("of 16")
    }

    def share(options: dict[str, Any]) -> tuple[float, float]:
        run = send(llm, noise_images(FOUR_TILES, CONCURRENCY), options)
        return run.wall / CONCURRENCY, run.steps

    def scaled(options: dict[str, Any]) -> float:
        one, many = (share({**options, "steps": n})[0] for n in (1, args.steps))
        return one + (many - one) / (args.steps - 1) * (GEN_LENGTH - 1)

    walls: dict[str, list[float]] = {}
    num_steps: dict[str, list[float]] = {}
    for repeat in range(args.repeats):
        (image,) = noise_images(FOUR_TILES, 1)
        (prompt,) = send(llm, [image], {**EXACT, "steps": 1}).prompts
        for rows in PLAIN_ROWS:
            shape = prompt, image, GEN_LENGTH, GEN_LENGTH
            if repeat == 0:
                plain.generate(*shape, 1, rows)
            result = plain.generate(*shape, args.plain_steps, rows)
            name = f"plain {rows} (scaled)"
            walls.setdefault(name, []).append(result.scaled(GEN_LENGTH))
        for name, rate in () if args.quick else (("exact", 0.0), ("pruned", args.rate)):
            options = {**EXACT, "prune_rate": rate}
            if repeat == 0:
                share({**options, "steps": 1})
            walls.setdefault(f"{name} (scaled)", []).append(scaled(options))
        for name, preset in presets.items():
            options = {**preset, "prune_rate": args.rate}
            if repeat == 0:
                share({**options, "steps": GEN_LENGTH // 8})
            seconds, steps = share(options)
            walls.setdefault(name, []).append(seconds)
            num_steps.setdefault(name, []).append(steps)
    median = medians(walls)
    _show_shares(median, num_steps, len(prompt))
    best = min((n for n in presets if "threshold" not in n), key=median.__getitem__)
    ratio = median["plain all (scaled)"] / median[best]
    targets = [Target(f"throughput, {best} / plain all (scaled)", ratio, 150)]
    if not args.quick:
        ratio = median["exact (scaled)"] / median["pruned (scaled)"]
        targets.insert(0, Target("throughput, pruned / exact (scaled)", ratio, 3))
    return {"walls": walls, "steps": num_steps}, targets


def _show_shares(
    median: dict[str, float], num_steps: dict[str, list[float]], prompt_len: int
) -> None:
    print(f"seconds per request of {prompt_len} tokens, {CONCURRENCY} at once:")
    for name, wall in median.items():
        gain = median["plain all (scaled)"] / wall
        gain_on_canvas = median["plain canvas (scaled)"] / wall
        print(
            f"  {name}: {wall:.2f} s, {gain:.1f}x plain all, {gain_on_canvas:.1f}x "
            f"plain canvas{_mean_steps(num_steps.get(name))}"
        )


def _mean_steps(steps: list[float] | None) -> str:
    return f", {statistics.mean(steps):.1f} steps" if steps else ""
