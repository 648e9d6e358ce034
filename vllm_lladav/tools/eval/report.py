# SPDX-License-Identifier: Apache-2.0
"""The results of a sweep as printed tables, JSON and CSV."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_lladav.tools.eval.questions import Question
from vllm_lladav.tools.eval.scoring import Accuracy
from vllm_lladav.tools.eval.settings import PARAMETERS
from vllm_lladav.tools.eval.sweep import Choice, Summary

JSON_NAME = "results.json"
CSV_NAME = "results.csv"

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
    headers = list(rows[0])
    lines = [headers, *([row[name] for name in headers] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if number else text.ljust(width)
            for number, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def describe_choice(choice: Choice, baseline: Summary) -> str:
    """Printed text: the cheapest settings that keep enough accuracy, with the
    ``vllm_xargs`` to send."""
    if not baseline.accuracy.num_right:
        return (
            f"The {baseline.label} setting answers nothing right: there is no accuracy "
            "to keep."
        )
    lines = [f"Cheapest with at least {choice.keep:.0%} of exact accuracy:"]
    for what, summary in (
        ("FLOPs", choice.by_flops),
        ("wall time", choice.by_seconds),
    ):
        if summary is None:
            continue
        savings = [f"{_saving(summary.seconds, baseline.seconds)} wall time"]
        if summary.flops is not None and baseline.flops is not None:
            savings.insert(0, f"{_saving(summary.flops, baseline.flops)} FLOPs")
        kept = _ratio(summary.accuracy.value, baseline.accuracy.value, ".1%")
        lines.append(
            f"  by {what}: {summary.label} ({kept} of exact accuracy, "
            f"{', '.join(savings)})"
        )
        lines.append(f"    vllm_xargs: {json.dumps(summary.run.setting.xargs)}")
    return "\n".join(lines)


def results(
    summaries: Sequence[Summary],
    questions: Sequence[Question],
    keep: float,
    choice: Choice | None,
    parameters: Mapping[str, Any],
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of ``results.json``; ``choice`` is None until all settings ran."""
    baseline = summaries[0]
    best = None
    if choice is not None:
        best = {
            "by_flops": choice.by_flops and choice.by_flops.label,
            "by_seconds": choice.by_seconds.label,
        }
    return {
        "environment": dict(environment),
        "parameters": dict(parameters),
        "keep": keep,
        "best": best,
        "settings": [_entry(s, baseline, questions) for s in summaries],
    }


def write_results(directory: Path, found: Mapping[str, Any]) -> list[Path]:
    """Write ``results.json`` and ``results.csv``; returns the files."""
    json_file, csv_file = directory / JSON_NAME, directory / CSV_NAME
    json_file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    rows = [csv_row(entry) for entry in found["settings"]]
    headers = list(dict.fromkeys(name for row in rows for name in row))
    with csv_file.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, headers, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return [json_file, csv_file]


def csv_row(entry: Mapping[str, Any]) -> Row:
    """A line of ``results.csv``: one entry of ``settings`` in the JSON, without its
    nested values."""
    arguments = entry["vllm_xargs"]
    figures = {
        name: value
        for name, value in entry.items()
        if not isinstance(value, dict | list)
    }
    return {
        "setting": entry["setting"],
        "gen_length": arguments["gen_length"],
        **{name: arguments.get(name, "") for name in PARAMETERS},
        **figures,
        **{
            f"accuracy_{task}": found["value"]
            for task, found in entry["accuracy_by_task"].items()
        },
    }


def _entry(
    summary: Summary, baseline: Summary, questions: Sequence[Question]
) -> dict[str, Any]:
    answers = summary.run.answers
    low, high = summary.accuracy.interval
    entry = {
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
    }
    predictions = [
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
            questions, answers, summary.right, strict=True
        )
    ]
    return {**entry, "predictions": predictions}


def _accuracies(groups: Mapping[str, Accuracy]) -> dict[str, Any]:
    return {
        group: {
            "value": found.value,
            "num_right": found.num_right,
            "num_questions": found.num_questions,
        }
        for group, found in groups.items()
    }


def _quotient(value: float | None, whole: float | None) -> float | None:
    return value / whole if value is not None and whole else None


def _ratio(value: float | None, whole: float | None, form: str, unit: str = "") -> str:
    quotient = _quotient(value, whole)
    return "-" if quotient is None else f"{quotient:{form}}{unit}"


def _saving(value: float, whole: float) -> str:
    """Such as ``-60%``."""
    return f"{value / whole - 1:+.0%}"
