# SPDX-License-Identifier: Apache-2.0
"""Accuracy against what a setting costs, as PNG. matplotlib is imported late."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vllm_lladav.tools.eval.sweep import Summary

FLOPS_NAME = "accuracy-flops.png"
SECONDS_NAME = "accuracy-seconds.png"

LOG_FROM = 5
"""The cost axis is logarithmic if the largest cost is more than so many times the
smallest."""

_COLOURS = {
    "none": "#444444",
    "fastv": "#0072b2",
    "aggregated": "#009e73",
    "adaptive": "#56b4e9",
    "similarity": "#cc79a7",
    "uniform": "#e69f00",
    "random": "#d55e00",
}
_MARKERS = {"none": "o", "prompt": "s", "prefix": "^", "dual": "D"}


def require_matplotlib() -> None:
    """Check that plots can be drawn, before anything runs.

    Raises:
        ValueError: saying how to install it.
    """
    if find_spec("matplotlib") is None:
        raise ValueError(
            "the plots need matplotlib: pip install 'vllm-lladav[bench]', or leave "
            "them out with --no-plots"
        )


def draw_plots(
    directory: Path, summaries: Sequence[Summary], keep: float
) -> list[Path]:
    """Write accuracy against operations, if these are known, and against seconds.

    Args:
        keep: share of the first summary's accuracy at which a line is drawn, 0 to 1.

    Returns:
        The files, PNG.
    """
    num_questions = len(summaries[0].run.answers)
    files = []
    if all(summary.flops is not None for summary in summaries):
        is_rough = any(summary.flops_are_estimated for summary in summaries)
        label = "model GFLOP per request" + (", partly estimated" if is_rough else "")
        file = directory / FLOPS_NAME
        _draw(file, summaries, keep, label, lambda s: (s.flops or 0.0) / 1e9)
        files.append(file)
    file = directory / SECONDS_NAME
    label = "seconds per question (wall time of all / number of questions)"
    _draw(file, summaries, keep, label, lambda s: s.seconds / num_questions)
    return [*files, file]


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, accuracy) for which no other is as cheap and as accurate;
    in order of cost."""
    best: list[int] = []
    for index in sorted(
        range(len(points)), key=lambda i: (points[i][0], -points[i][1])
    ):
        if not best or points[index][1] > points[best[-1]][1]:
            best.append(index)
    return best


def _draw(
    file: Path,
    summaries: Sequence[Summary],
    keep: float,
    label: str,
    cost_of: Callable[[Summary], float],
) -> None:
    # Without pyplot: no window system, and no state that outlives the figure.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot()
    points = [(cost_of(s), s.accuracy.value) for s in summaries]
    _draw_points(axes, summaries, points)
    least = keep * points[0][1]
    axes.axhline(least, color="#999999", linestyle=":", linewidth=1)
    axes.annotate(
        f"{keep:.0%} of exact",
        (0, least),
        xycoords=("axes fraction", "data"),
        xytext=(3, -3),
        textcoords="offset points",
        va="top",
        fontsize=7,
        color="#666666",
    )
    _scale_costs(axes, [cost for cost, _ in points])
    axes.set_xlabel(label)
    axes.set_ylabel("accuracy (exact match), 95% interval")
    axes.set_title(f"{len(summaries[0].right)} questions; the line joins the best")
    axes.grid(alpha=0.2, which="both")
    _add_legend(figure, summaries)
    figure.savefig(file, dpi=150)


def _draw_points(
    axes: Any, summaries: Sequence[Summary], points: Sequence[tuple[float, float]]
) -> None:
    """Every (cost, accuracy) with its interval; the best are joined and named."""
    for summary, (cost, value) in zip(summaries, points, strict=True):
        low, high = summary.accuracy.interval
        colour, marker = _style(summary)
        axes.errorbar(
            cost,
            value,
            yerr=[[value - low], [high - value]],
            fmt=marker,
            color=colour,
            ecolor=colour + "40",
            markersize=6,
            elinewidth=1,
        )
    best = frontier(points)
    axes.plot(*zip(*(points[i] for i in best), strict=True), color="#bbbbbb", zorder=0)
    middle = sorted(cost for cost, _ in points)[len(points) // 2]
    for index in dict.fromkeys((0, *best)):
        # Towards the middle, where there is room.
        is_right = points[index][0] > middle
        axes.annotate(
            summaries[index].label,
            points[index],
            xytext=(-5 if is_right else 5, 5),
            textcoords="offset points",
            ha="right" if is_right else "left",
            fontsize=7,
        )


def _scale_costs(axes: Any, costs: Sequence[float]) -> None:
    """A logarithmic axis where costs are far apart."""
    from matplotlib.ticker import LogLocator

    if max(costs) > LOG_FROM * min(costs) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
        axes.xaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="x", which="both", labelsize=8)


def _style(summary: Summary) -> tuple[str, str]:
    """Colour of the pruning policy and marker of the cache."""
    setting = summary.run.setting
    policy = setting.get("prune_policy") or "none"
    return _COLOURS[policy], _MARKERS[setting.get("cache") or "none"]


def _add_legend(figure: Any, summaries: Sequence[Summary]) -> None:
    from matplotlib.lines import Line2D

    policies = {s.run.setting.get("prune_policy") or "none" for s in summaries}
    caches = {s.run.setting.get("cache") for s in summaries}
    handles = [
        Line2D([], [], color=colour, marker="o", linestyle="", label=_policy_name(name))
        for name, colour in _COLOURS.items()
        if name in policies
    ]
    handles += [
        Line2D([], [], color="#777777", marker=marker, linestyle="", label=f"{name}")
        for name, marker in _MARKERS.items()
        if name in caches and name != "none"
    ]
    figure.legend(
        handles=handles, fontsize=8, loc="outside lower center", ncols=len(handles)
    )


def _policy_name(name: str) -> str:
    return "not pruned" if name == "none" else name
