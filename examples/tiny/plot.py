# SPDX-License-Identifier: Apache-2.0
"""Draw the loss and the held-out accuracies of a training run.

::

    python -m examples.tiny.plot RUN/log.jsonl examples/tiny/loss.png
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

ORANGE, BLUE, GREY = "#d95f02", "#1f6fb4", "#999999"


def read_log(path: Path) -> list[dict[str, Any]]:
    """Lines of the log; of a step that was done twice, after a restart, the last."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return list({(line["stage"], line["step"]): line for line in lines}.values())


def draw(log: list[dict[str, Any]], path: Path) -> None:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.2))
    first = [line for line in log if "right" in line]
    steps = [line["step"] for line in first]
    left.plot(steps, [line["loss"] for line in first], color=BLUE)
    left.set(title="Alignment", xlabel="step", ylabel="loss", yscale="log")
    share = left.twinx()
    share.plot(steps, [line["right"] for line in first], color=ORANGE)
    share.set(ylim=(0, 1))
    share.set_ylabel("patches read rightly", color=ORANGE)

    whole = sorted(
        (line for line in log if line["stage"] == "all"), key=lambda line: line["step"]
    )
    steps = [line["step"] for line in whole]
    middle.plot(steps, [line["loss"] for line in whole], color=GREY, linewidth=0.5)
    middle.plot(steps, [line["mean"] for line in whole], color=BLUE)
    middle.set(title="Whole model", xlabel="step", ylabel="loss", yscale="log")

    found = sorted(
        (line for line in log if line["stage"] == "accuracy"),
        key=lambda line: line["step"],
    )
    for task, colour in (("word", BLUE), ("sentence", ORANGE)):
        right.plot(
            [line["step"] for line in found],
            [line[task] for line in found],
            color=colour,
            marker=".",
            label=task,
        )
    right.set(title="Held-out pictures", xlabel="step", ylabel="exact matches")
    right.set(ylim=(0, 1.03))
    right.legend(frameon=False)
    for axes in (left, middle, right):
        axes.spines[["top"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    draw(read_log(arguments.log), arguments.picture)


if __name__ == "__main__":
    main()
