# SPDX-License-Identifier: Apache-2.0
"""The results of a sweep as printed tables, JSON and CSV."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vllm_lladav.tools.eval.environment import environment
from vllm_lladav.tools.eval.questions import Question
from vllm_lladav.tools.eval.scoring import Accuracy
from vllm_lladav.tools.eval.settings import PARAMETERS
from vllm_lladav.tools.eval.sweep import Summary, cheapest

Row = dict[str, Any]


def table_row(summary: Summary, baseline: Summary) -> Row:
    """One line of the printed table, by column header; ``baseline`` is the exact
    setting's summary."""
    low, high = summary.accuracy.interval
    row = {
        "setting": summary.label,
        "accuracy": f"{summary.accuracy.value:.1%}",
        "95%": f"{low:.0%}-{high:.0%}",
        "of exact": _ratio(summary.accuracy.value, baseline.accuracy.value, ".0%"),
        "same": f"{summary.agreement:.0%}",
    }
    if summary.flops is not None:
        mark = "~" if summary.flops_are_estimated else ""
        row["GFLOP"] = f"{mark}{summary.flops / 1e9:,.1f}"
        row["fewer"] = _ratio(baseline.flops, summary.flops, ".2f", "x")
    return {
        **row,
        "seconds": f"{summary.seconds:.1f}",
        "faster": _ratio(baseline.seconds, summary.seconds, ".2f", "x"),
        "steps": f"{summary.steps:.1f}",
        "tokens/step": f"{summary.tokens_per_step:.2f}",
        "visual": f"{summary.visual_tokens_kept:.0f}/{summary.visual_tokens:.0f}",
    }


def task_row(summary: Summary) -> Row:
    """One line of the printed table of accuracy per task, by column header."""
    tasks = {
        task: f"{found.value:.1%} of {found.num_questions}"
        for task, found in summary.by_task.items()
    }
    return {"setting": summary.label, **tasks}


def format_table(rows: Sequence[Row]) -> str:
    """Rows of texts as aligned lines under their headers; the first column is flush
    left, the others flush right."""
    columns: list[list[str]] = []
    for name in rows[0]:
        texts = [name, *(row[name] for row in rows)]
        justify = str.rjust if columns else str.ljust
        columns.append([justify(text, max(map(len, texts))) for text in texts])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def describe_cheapest(summaries: Sequence[Summary], keep: float) -> str:
    """Printed text: the cheapest settings that keep enough accuracy, with the
    ``vllm_xargs`` to send; the first summary is the exact setting's."""
    baseline = summaries[0]
    if not baseline.accuracy.num_right:
        return (
            f"The {baseline.label} setting answers nothing right: there is no accuracy "
            "to keep."
        )
    lines = [f"Cheapest with at least {keep:.0%} of exact accuracy:"]
    by_flops, by_seconds = cheapest(summaries, keep)
    for what, summary in (("FLOPs", by_flops), ("wall time", by_seconds)):
        if summary is None:
            continue
        kept = _ratio(summary.accuracy.value, baseline.accuracy.value, ".1%")
        found = f"{kept} of exact accuracy, "
        if summary.flops is not None and baseline.flops is not None:
            found += f"{summary.flops / baseline.flops - 1:+.0%} FLOPs, "
        found += f"{summary.seconds / baseline.seconds - 1:+.0%} wall time"
        lines.append(f"  by {what}: {summary.label} ({found})")
        lines.append(f"    vllm_xargs: {json.dumps(summary.run.setting.xargs)}")
    return "\n".join(lines)


def write_results(
    directory: Path,
    summaries: Sequence[Summary],
    questions: Sequence[Question],
    parameters: Mapping[str, Any],
    keep: float,
    is_done: bool,
) -> None:
    """Write ``results.json`` and ``results.csv``.

    Args:
        parameters: of the sweep, for the record; paths are written as texts.
        keep: share of the exact setting's accuracy that the best one must keep.
        is_done: whether all settings ran: there is no best one before.
    """
    by_flops, by_seconds = cheapest(summaries, keep)
    best = {"by_flops": by_flops and by_flops.label, "by_seconds": by_seconds.label}
    entries = [_entry(summary, summaries[0], questions) for summary in summaries]
    found = {
        "environment": environment(),
        "parameters": parameters,
        "keep": keep,
        "best": best if is_done else None,
        "settings": entries,
    }
    text = json.dumps(found, indent=1, default=str)
    (directory / "results.json").write_text(text + "\n", encoding="utf-8")
    rows = [_csv_row(entry) for entry in entries]
    headers = list(dict.fromkeys(name for row in rows for name in row))
    with (directory / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, headers, restval="")
        writer.writeheader()
        writer.writerows(rows)


def _csv_row(entry: Mapping[str, Any]) -> Row:
    """A line of ``results.csv``: one entry of ``settings`` in the JSON, without its
    nested values."""
    arguments, by_task = entry["vllm_xargs"], entry["accuracy_by_task"]
    nested = (dict, list)
    return {
        "setting": entry["setting"],
        **{name: arguments.get(name, "") for name in ("gen_length", *PARAMETERS)},
        **{name: v for name, v in entry.items() if not isinstance(v, nested)},
        **{f"accuracy_{task}": found["value"] for task, found in by_task.items()},
    }


def _entry(
    summary: Summary, baseline: Summary, questions: Sequence[Question]
) -> dict[str, Any]:
    low, high = summary.accuracy.interval
    return {
        "setting": summary.label,
        "vllm_xargs": summary.run.setting.xargs,
        "accuracy": summary.accuracy.value,
        "accuracy_low": low,
        "accuracy_high": high,
        "num_right": summary.accuracy.num_right,
        "num_questions": summary.accuracy.num_questions,
        "accuracy_ratio": _quotient(summary.accuracy.value, baseline.accuracy.value),
        "agreement": summary.agreement,
        "flops": summary.flops,
        "flops_are_estimated": summary.flops_are_estimated,
        "flops_ratio": _quotient(summary.flops, baseline.flops),
        "seconds": summary.seconds,
        "seconds_per_question": summary.seconds / len(questions),
        "seconds_ratio": _quotient(summary.seconds, baseline.seconds),
        "denoising_steps": summary.steps,
        "tokens_per_step": summary.tokens_per_step,
        "visual_tokens": summary.visual_tokens,
        "visual_tokens_kept": summary.visual_tokens_kept,
        "seconds_of_repeats": list(summary.run.seconds),
        "accuracy_by_task": _accuracies(summary.by_task),
        "accuracy_by_kind": _accuracies(summary.by_kind),
        "predictions": [
            {
                "id": question.id,
                "question": question.text,
                "answer": question.answer,
                "prediction": answer.text,
                "right": right,
                "tokens": answer.num_tokens,
                "steps": answer.steps,
                "prompt_tokens": answer.prompt_len,
                "visual_tokens": answer.visual_tokens,
                "visual_tokens_kept": answer.visual_tokens_kept,
            }
            for question, answer, right in zip(
                questions, summary.run.answers, summary.right, strict=True
            )
        ],
    }


def _accuracies(groups: Mapping[str, Accuracy]) -> dict[str, Any]:
    return {
        group: {"value": found.value, **asdict(found)}
        for group, found in groups.items()
    }


def _quotient(value: float | None, whole: float | None) -> float | None:
    return value / whole if value is not None and whole else None


def _ratio(value: float | None, whole: float | None, form: str, unit: str = "") -> str:
    quotient = _quotient(value, whole)
    return "-" if quotient is None else f"{quotient:{form}}{unit}"
