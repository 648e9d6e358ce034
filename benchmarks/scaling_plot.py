# SPDX-License-Identifier: Apache-2.0
"""Draws what ``scaling.py`` measured.

python benchmarks/scaling_plot.py FIGURES.json
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LABELS = {
    "tiles": "tiles of the image",
    "gen_length": "canvas positions (one step for 8)",
    "concurrency": "requests at once",
    "images": "images of the request",
}


def draw(rows: Sequence[dict[str, Any]], target: Path) -> None:
    """A panel for every sweep: seconds measured and computed."""
    from matplotlib.figure import Figure

    sweeps = list(dict.fromkeys(row["sweep"] for row in rows))
    figure = Figure(figsize=(3.6 * len(sweeps), 3.2), layout="constrained")
    panels = figure.subplots(1, len(sweeps), squeeze=False)[0]
    for sweep, panel in zip(sweeps, panels, strict=True):
        points = [row for row in rows if row["sweep"] == sweep]
        values = [row["value"] for row in points]
        for name, style, label in (
            ("seconds", "o-", "measured"),
            ("predicted", "x--", "computed"),
        ):
            panel.plot(values, [row[name] for row in points], style, label=label)
        if sweep in ("gen_length", "concurrency"):
            panel.set_xscale("log", base=2)
            panel.set_yscale("log", base=2)
            panel.yaxis.set_major_formatter("{x:g}")
        else:
            panel.set_ylim(bottom=0)
        panel.set_xticks(values, [str(value) for value in values])
        panel.set_xlabel(LABELS[sweep])
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("seconds")
    panels[0].legend()
    figure.savefig(target, dpi=120)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    draw(json.loads(source.read_text())["runs"], source.with_suffix(".png"))
