# SPDX-License-Identifier: Apache-2.0
"""Accuracy against what a setting costs, as PNG. matplotlib is imported late."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vllm_lladav.tools.eval.sweep import Summary

LOG_FROM = 5
"""The cost axis is logarithmic if the largest cost is more than so many times the
smallest."""

_COLOURS = {
    "not pruned": "#444444",
    "fastv": "#0072b2",
    "aggregated": "#009e73",
    "adaptive": "#56b4e9",
    "similarity": "#cc79a7",
    "uniform": "#e69f00",
    "random": "#d55e00",
}
_MARKERS = {"prompt": "s", "prefix": "^", "dual": "D"}


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


def draw_plots(directory: Path, summaries: Sequence[Summary], keep: float) -> None:
    """Write accuracy against seconds, and against operations if these are known, as
    ``accuracy-seconds.png`` and ``accuracy-flops.png``.

    Args:
        keep: share of the first summary's accuracy at which a line is drawn, 0 to 1.
    """
    num_questions = len(summaries[0].right)
    seconds = [summary.seconds / num_questions for summary in summaries]
    label = "seconds per question (wall time of all / number of questions)"
    _draw(directory / "accuracy-seconds.png", summaries, keep, label, seconds)
    flops = [summary.flops / 1e9 for summary in summaries if summary.flops is not None]
    if len(flops) == len(summaries):
        is_rough = any(summary.flops_are_estimated for summary in summaries)
        label = "model GFLOP per request" + (", partly estimated" if is_rough else "")
        _draw(directory / "accuracy-flops.png", summaries, keep, label, flops)


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, accuracy) for which no other is as cheap and as accurate;
    in order of cost."""
    best: list[int] = []
    for index, (_, accuracy) in sorted(
        enumerate(points), key=lambda item: (item[1][0], -item[1][1])
    ):
        if not best or accuracy > points[best[-1]][1]:
            best.append(index)
    return best


def _draw(
    file: Path,
    summaries: Sequence[Summary],
    keep: float,
    label: str,
    costs: Sequence[float],
) -> None:
    # Without pyplot: no window system, and no state that outlives the figure.
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot()
    values = [summary.accuracy.value for summary in summaries]
    points = list(zip(costs, values, strict=True))
    _draw_points(axes, summaries, points)
    least = keep * values[0]
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
    if max(costs) > LOG_FROM * min(costs) > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
        axes.xaxis.set_minor_formatter("{x:g}")
        axes.tick_params(axis="x", which="both", labelsize=8)
    axes.set(
        xlabel=label,
        ylabel="accuracy (exact match), 95% interval",
        title=f"{len(summaries[0].right)} questions; the line joins the best",
    )
    axes.grid(alpha=0.2, which="both")
    _add_legend(figure, summaries)
    figure.savefig(file, dpi=150)


def _draw_points(
    axes: Any, summaries: Sequence[Summary], points: Sequence[tuple[float, float]]
) -> None:
    """Every (cost, accuracy) with its interval; the best are joined and named."""
    for summary, (cost, value) in zip(summaries, points, strict=True):
        low, high = summary.accuracy.interval
        policy, cache = _style(summary)
        axes.errorbar(
            cost,
            value,
            yerr=[[value - low], [high - value]],
            fmt=_MARKERS.get(cache, "o"),
            color=_COLOURS[policy],
            ecolor=_COLOURS[policy] + "40",
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


def _style(summary: Summary) -> tuple[str, str]:
    """Pruning policy and cache, as the tables of colours and markers have them."""
    xargs = summary.run.setting.xargs
    return xargs.get("prune_policy", "not pruned"), xargs["cache"]


def _add_legend(figure: Any, summaries: Sequence[Summary]) -> None:
    from matplotlib.lines import Line2D

    policies, caches = map(set, zip(*map(_style, summaries), strict=True))
    handles = [
        Line2D([], [], color=colour, marker="o", linestyle="", label=policy)
        for policy, colour in _COLOURS.items()
        if policy in policies
    ]
    handles += [
        Line2D([], [], color="#777777", marker=marker, linestyle="", label=cache)
        for cache, marker in _MARKERS.items()
        if cache in caches
    ]
    figure.legend(
        handles=handles, fontsize=8, loc="outside lower center", ncols=len(handles)
    )
