# SPDX-License-Identifier: Apache-2.0
"""Tables and plots of what the benchmarks left in a directory.

    python benchmarks/report.py results/bench

Reads the JSON files that are there, in that directory and below, and writes
``report.md`` and a PNG for each that has something to plot. None of them must be there.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Json = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]

# Title of a panel, and the fields that it draws against the requests at once.
LOAD_PANELS: tuple[tuple[str, tuple[str, ...], float], ...] = (
    ("Requests per second", ("requests_per_s",), 1),
    ("Committed tokens per second", ("committed_tokens_per_s",), 1),
    ("Latency, s: p50, p95 dashed", ("latency_p50_ms", "latency_p95_ms"), 1e-3),
    ("Time to first block, s: p50", ("first_block_p50_ms",), 1e-3),
    ("KV blocks in use, at most, %", ("kv_use_peak",), 100),
    ("Visual tokens kept, %", ("visual_tokens_kept",), 100),
)
LOAD_COLUMNS = {
    "preset": ("preset", 1, "s"),
    "at once": ("concurrency", 1, "d"),
    "requests": ("completed", 1, "d"),
    "failed": ("failed", 1, "d"),
    "requests/s": ("requests_per_s", 1, ".2f"),
    "tokens/s": ("committed_tokens_per_s", 1, ".1f"),
    "steps/s": ("steps_per_s", 1, ".1f"),
    "tokens/step": ("tokens_per_step", 1, ".2f"),
    "latency p50, s": ("latency_p50_ms", 1e-3, ".2f"),
    "p95": ("latency_p95_ms", 1e-3, ".2f"),
    "p99": ("latency_p99_ms", 1e-3, ".2f"),
    "first block p50, s": ("first_block_p50_ms", 1e-3, ".2f"),
    "queued, s": ("queue_ms", 1e-3, ".2f"),
    "running, at most": ("running_peak", 1, "d"),
    "KV use, %": ("kv_use_peak", 100, ".0f"),
    "visual kept, %": ("visual_tokens_kept", 100, ".0f"),
    "memory, MB": ("rss_peak_mb", 1, ".0f"),
}
ITERATION_COLUMNS = {
    "preset": ("preset", 1, "s"),
    "at once": ("concurrency", 1, "d"),
    "requests in a step": ("requests_per_iteration", 1, ".1f"),
    "step, ms": ("step_ms", 1, ".1f"),
    "ranking in it": ("ranking_ms", 1, ".2f"),
    "between steps": ("between_steps_ms", 1, ".1f"),
}
MEMORY_COLUMNS = {
    "process": ("process", 1, "s"),
    "private, MB, at first": ("start_mb", 1, ".0f"),
    "at last": ("end_mb", 1, ".0f"),
    "last quarter over third, %": ("growth_percent", 1, ".1f"),
    "slope, MB an hour": ("slope_mb_per_hour", 1, ".0f"),
    "RSS at last": ("rss_mb", 1, ".0f"),
}
GOODPUT_COLUMNS = {
    "": ("variant", 1, "s"),
    "times capacity": ("multiple", 1, "g"),
    "capacity/s": ("capacity_per_s", 1, ".1f"),
    "limit, s": ("limit_s", 1, ".1f"),
    "offered/s": ("offered_per_s", 1, ".1f"),
    "answered/s": ("answered_per_s", 1, ".1f"),
    "in time/s": ("goodput_per_s", 1, ".1f"),
    "of capacity, %": ("goodput_share", 100, ".0f"),
    "in time, %": ("useful_share", 100, ".0f"),
    "of urgent ones, %": ("useful_share_urgent", 100, ".0f"),
    "answer p50, s": ("answer_p50_s", 1, ".2f"),
    "at most": ("answer_max_s", 1, ".1f"),
    "503s": ("refusals", 1, "d"),
    "503 p50, ms": ("refusal_p50_s", 1e3, ".0f"),
    "waiting, at most": ("waiting_peak", 1, "d"),
}
COMPARISON_COLUMNS = {
    "comparison": ("comparison", 1, "s"),
    "": ("run", 1, "s"),
    "seconds": ("seconds", 1, ".2f"),
}
RANK_COLUMNS = {
    "engines": ("ranks", 1, "d"),
    "cores": ("binding", 1, "s"),
    "denoising": ("mode", 1, "s"),
    "seconds": ("seconds", 1, ".2f"),
    "requests/s": ("requests_per_s", 1, ".3f"),
}
TARGET_COLUMNS = {
    "file": ("file", 1, "s"),
    "ratio": ("name", 1, "s"),
    "measured": ("ratio", 1, ".2f"),
    "goal": ("goal", 1, "s"),
    "reached": ("verdict", 1, "s"),
}


def cell(row: Mapping[str, Any], field: str, scale: float, form: str) -> str:
    value = row.get(field)
    if value is None:
        return ""
    return format(value if form in "sd" else value * scale, form)


def table(rows: Rows, columns: Mapping[str, tuple[str, float, str]]) -> list[str]:
    """Markdown; cells of missing fields are empty."""
    lines = ["| " + " | ".join(columns) + " |", "| --- " * len(columns) + "|"]
    for row in rows:
        cells = (cell(row, *column) for column in columns.values())
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def facts(name: str, values: Mapping[str, Any]) -> list[str]:
    text = ", ".join(f"{key} {value}" for key, value in values.items())
    return [f"{name}: {text}", ""] if values else []


def plot_lines(axes: Axes, rows: Rows, fields: Sequence[str], scale: float) -> None:
    """A colour for every preset, a dash pattern for every field."""
    for index, preset in enumerate(dict.fromkeys(row["preset"] for row in rows)):
        for field, style in zip(fields, ("-", "--", ":"), strict=False):
            points = [
                (row["concurrency"], row[field] * scale)
                for row in rows
                if row["preset"] == preset and row.get(field) is not None
            ]
            if points:
                label = preset if field == fields[0] else None
                line = {"color": f"C{index}", "linestyle": style, "marker": "."}
                axes.plot(*zip(*sorted(points), strict=True), label=label, **line)
    axes.set_xscale("log", base=2)
    ticks = sorted({row["concurrency"] for row in rows})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel("requests at once")
    axes.set_ylim(bottom=0)


def plot_load(rows: Rows, path: Path) -> None:
    figure, grid = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    for axes, (title, fields, scale) in zip(grid.flat, LOAD_PANELS, strict=True):
        plot_lines(axes, rows, fields, scale)
        axes.set_title(title)
    grid.flat[0].legend()
    figure.savefig(path)
    plt.close(figure)


def plot_bars(
    labels: Sequence[str], parts: Mapping[str, Sequence[float]], title: str, path: Path
) -> None:
    """Stacked: a bar for every label, a colour for every part."""
    figure, axes = plt.subplots(
        figsize=(9, 1.2 + 0.4 * len(labels)), layout="constrained"
    )
    left = [0.0] * len(labels)
    for part, widths in parts.items():
        axes.barh(labels, widths, left=left, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    axes.set_title(title)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path)
    plt.close(figure)


def report_load(figures: Json, stem: Path) -> list[str]:
    rows = figures["runs"]
    if not rows:
        return ["No run was finished.", ""]
    plot_load(rows, stem.with_suffix(".png"))
    split_path = stem.with_name(f"{stem.name}-iterations.png")
    timed = [row for row in rows if row.get("step_ms") is not None]
    lines = [f"![Load]({stem.name}.png)", "", *table(rows, LOAD_COLUMNS)]
    if timed:
        labels = [f"{row['preset']}, {row['concurrency']}" for row in timed]
        ranking = [row["ranking_ms"] or 0.0 for row in timed]
        parts = {
            "step": [row["step_ms"] - r for row, r in zip(timed, ranking, strict=True)],
            "ranking": ranking,
            "between steps": [row["between_steps_ms"] for row in timed],
        }
        plot_bars(labels, parts, "An iteration, from /metrics", split_path)
        lines += [f"![Iterations]({split_path.name})", ""]
        lines += table(timed, ITERATION_COLUMNS)
    return lines


def report_steps(figures: Json, stem: Path) -> list[str]:
    rows = [row for row in figures["steps"] if "parts_ms" in row]
    if not rows:
        return ["Nothing to show.", ""]
    names = list(rows[0]["parts_ms"])
    labels = [f"{row['requests']} at once" for row in rows]
    parts = {name: [row["parts_ms"][name] for row in rows] for name in names}
    plot_bars(labels, parts, "A step", stem.with_suffix(".png"))
    columns = {"at once": ("requests", 1, "d"), "step, ms": ("wall_ms", 1, ".2f")}
    columns |= {f"{name}, %": (name, 1, ".1f") for name in names}
    flat = [{**row, **row["percent"]} for row in rows]
    return [f"![Step]({stem.name}.png)", "", *table(flat, columns)]


def report_soak(figures: Json, stem: Path) -> list[str]:
    figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
    for name, process in figures["memory"].items():
        axes.plot(process["seconds"], process["private"], label=name)
    axes.set_xlabel("seconds")
    axes.set_title("Private memory of each process of the server, MB")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(stem.with_suffix(".png"))
    plt.close(figure)
    rows = [
        {"process": name, "rss_mb": process["rss"][-1], **process["growth"]}
        for name, process in figures["memory"].items()
        if process["growth"]
    ]
    drift = figures["drift"]
    asked_again = {"asked": drift["asked"], "changed": len(drift["changed"])}
    return [
        f"![Memory]({stem.name}.png)",
        "",
        *facts("Requests", {**figures["states"], "seconds": figures["seconds"]}),
        *facts("Answers asked for again", asked_again),
        *table(rows, MEMORY_COLUMNS),
        *facts("Left behind", figures["leftovers"]),
        f"Problems: {'; '.join(figures['problems']) or 'none'}",
        "",
    ]


def report_goodput(figures: Json, stem: Path) -> list[str]:
    rows = figures["runs"]
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for name in dict.fromkeys(row["variant"] for row in rows):
        mine = [row for row in rows if row["variant"] == name]
        points = sorted((row["offered_per_s"], row["goodput_per_s"]) for row in mine)
        axes.plot(*zip(*points, strict=True), marker=".", label=name)
    axes.set_xlabel("requests offered per second")
    axes.set_title("Answers in time, per second")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(stem.with_suffix(".png"))
    plt.close(figure)
    return [
        f"![Goodput]({stem.name}.png)",
        "",
        *table(rows, GOODPUT_COLUMNS),
    ]


def report_comparisons(figures: Json, stem: Path) -> list[str]:
    rows = [
        {"comparison": name, "run": run, "seconds": statistics.median(seconds)}
        for name, comparison in figures["comparisons"].items()
        for run, seconds in comparison["walls"].items()
    ]
    return table(rows, COMPARISON_COLUMNS)


def report_ranks(figures: Json, stem: Path) -> list[str]:
    return table(figures["runs"], RANK_COLUMNS)


def targets_of(path: Path) -> list[Json]:
    """What a file compares, and what it aims at."""
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        return [
            {
                **target,
                "file": path.name,
                "goal": f"{'<=' if target['at_most'] else '>='} {target['goal']:g}",
                "verdict": "yes" if target["is_reached"] else "no",
            }
            for target in json.loads(path.read_text()).get("targets", ())
        ]
    return []  # Its section says why.


SECTIONS: dict[str, tuple[str, Callable[[Json, Path], list[str]]]] = {
    "serve_load": ("A server under load", report_load),
    "step_overhead": ("What a step consists of", report_steps),
    "soak": ("Soak", report_soak),
    "goodput": ("Overload", report_goodput),
    "against_plain": ("Against a plain loop", report_comparisons),
    "data_parallel": ("One engine, and several", report_ranks),
}


def report_file(path: Path) -> list[str]:
    """A section; says so where a file is not what it should be."""
    name = next(name for name in SECTIONS if path.name.startswith(name))
    title, write = SECTIONS[name]
    lines = [f"## {title} ({path.name})", ""]
    try:
        figures = json.loads(path.read_text())
        machine = figures.get("machine", {})
        lines += facts("Machine", machine)
        if str(machine.get("commit")).endswith("-dirty"):
            lines += [
                "**Taken with uncommitted changes: no commit has this code.**",
                "",
            ]
        lines += facts("Settings", figures.get("settings", {}))
        lines += write(figures, path.with_suffix(""))
    except (ValueError, KeyError, TypeError) as error:
        lines += [f"Cannot be read: {error!r}", ""]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", type=Path, nargs="?", default=Path("results/bench"))
    args = parser.parse_args()
    sections, ratios = [], []
    for name, (title, _) in SECTIONS.items():
        paths = sorted(args.results.rglob(f"{name}*.json"))
        for path in paths:
            sections += report_file(path)
            ratios += targets_of(path)
        if not paths:
            sections += [f"## {title}", "", f"No {name}*.json.", ""]
    lines = ["# Benchmarks", ""]
    if ratios:
        lines += ["## Ratios", "", *table(ratios, TARGET_COLUMNS)]
    lines += sections
    args.results.mkdir(parents=True, exist_ok=True)
    path = args.results / "report.md"
    path.write_text("\n".join(lines))
    print(path)


if __name__ == "__main__":
    main()
