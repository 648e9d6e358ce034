# SPDX-License-Identifier: Apache-2.0
"""Measuring, comparing and writing, with a target that knows its answers."""

import csv
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vllm_lladav.denoising.plan import StepIndex
from vllm_lladav.model.flops import StepMasks
from vllm_lladav.tools.checkpoint import read_checkpoint
from vllm_lladav.tools.eval.answers import Answer
from vllm_lladav.tools.eval.cost import is_estimate, resolved, steps_by_block
from vllm_lladav.tools.eval.plots import draw_plots, frontier, require_matplotlib
from vllm_lladav.tools.eval.questions import Question
from vllm_lladav.tools.eval.report import (
    describe_cheapest,
    format_table,
    table_row,
    task_row,
    write_results,
)
from vllm_lladav.tools.eval.settings import Setting, plan_sweep
from vllm_lladav.tools.eval.sweep import cheapest, run_setting, summarise

LENGTHS = {"gen_length": 16, "block_length": 8}
EXACT, DUAL, PRUNED = plan_sweep(
    LENGTHS, [{"cache": "dual"}, {"prune_rate": 0.5, "prune_layer": 2}]
)
RIGHT = {EXACT: "abcd", DUAL: "abc", PRUNED: "ab"}
SECONDS = {EXACT: (10.0,), DUAL: (4.0, 9.0, 5.0), PRUNED: (6.0,)}


@pytest.fixture
def questions(tmp_path: Path) -> list[Question]:
    image = tmp_path / "photo.png"
    Image.new("RGB", (200, 100)).save(image)
    return [
        Question(name, image, "What?", f"it is {name}", "word" if name < "c" else "")
        for name in "abcd"
    ]


def answer(text: str = "", **values) -> Answer:
    defaults = {
        "num_tokens": 4,
        "is_ended": False,
        "prompt_len": 1000,
        "steps": 16,
        "visual_tokens": 900,
        "visual_tokens_kept": 900,
    }
    return Answer(text=text, **{**defaults, **values})


class Oracle:
    """Answers what it was told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def ask(self, questions: list[Question], setting: Setting) -> list[Answer]:
        time.sleep(0.01)
        self.asked.append((setting.label, "".join(q.id for q in questions)))
        kept = 450 if setting == PRUNED else 900
        return [
            answer(
                f"It is {question.id}." if question.id in RIGHT[setting] else "?",
                visual_tokens_kept=kept,
            )
            for question in questions
        ]


@pytest.fixture
def summaries(questions, tiny_checkpoint):
    target = Oracle()
    checkpoint = read_checkpoint(str(tiny_checkpoint))
    runs = [
        replace(run_setting(target, questions, setting), seconds=SECONDS[setting])
        for setting in (EXACT, DUAL, PRUNED)
    ]
    return [summarise(run, questions, runs[0], checkpoint) for run in runs]


def test_warm_up_and_repeats(questions):
    target = Oracle()
    run = run_setting(target, questions, DUAL, warm_up=2, repeats=3)
    assert target.asked == [("dual", "ab"), *[("dual", "abcd")] * 3]
    assert len(run.seconds) == 3 and min(run.seconds) >= 0.01
    assert len(run.answers) == 4
    assert len(run_setting(target, questions, DUAL).seconds) == 1


def test_summaries(summaries):
    exact, dual, pruned = summaries
    assert [s.accuracy.value for s in summaries] == [1.0, 0.75, 0.5]
    assert [s.agreement for s in summaries] == [1.0, 0.75, 0.5]
    assert dual.seconds == 5.0
    assert dual.by_task.keys() == {"word"} and dual.by_task["word"].num_questions == 2
    assert dual.by_kind == {}
    assert (exact.steps, exact.tokens_per_step) == (16.0, 0.25)
    assert (pruned.visual_tokens, pruned.visual_tokens_kept) == (900.0, 450.0)
    assert dual.flops < pruned.flops < exact.flops
    assert not any(s.flops_are_estimated for s in summaries)


def test_cheapest(summaries):
    exact, dual, pruned = summaries
    cases = [(1.0, exact, exact), (0.75, dual, dual), (0.5, dual, dual)]
    for keep, by_flops, by_seconds in cases:
        assert cheapest(summaries, keep) == (by_flops, by_seconds)
    cheap = replace(pruned, seconds=1.0)
    assert cheapest([exact, dual, cheap], 0.5) == (dual, cheap)
    text = describe_cheapest([exact, dual, cheap], 0.5)
    assert "at least 50% of exact accuracy" in text
    assert "by wall time: fastv 0.5@2 (50.0% of exact accuracy" in text
    assert "-90% wall time" in text
    assert f"vllm_xargs: {json.dumps(DUAL.xargs)}" in text


def test_cheapest_without_flops_or_accuracy(questions):
    run = run_setting(Oracle(), questions, EXACT)
    exact = summarise(run, questions, run)
    assert exact.flops is None
    assert cheapest([exact], 0.95) == (None, exact)
    assert "FLOPs" not in describe_cheapest([exact], 0.95)
    assert "GFLOP" not in table_row(exact, exact)
    wrong = replace(run, answers=tuple(answer("?") for _ in questions))
    nothing = summarise(wrong, questions, wrong)
    assert "nothing right" in describe_cheapest([nothing], 0.95)
    assert table_row(nothing, nothing)["of exact"] == "-"


def test_table(summaries):
    lines = format_table([table_row(s, summaries[0]) for s in summaries]).split("\n")
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split()[:4] == ["setting", "accuracy", "95%", "of"]
    assert lines[2].startswith("dual")
    for text in (" 75.0% ", " 30%-95% ", " 75% ", " 5.0 ", " 2.00x ", " 900/900"):
        assert text in lines[2]
    assert task_row(summaries[2]) == {"setting": "fastv 0.5@2", "word": "100.0% of 2"}


def test_files(tmp_path, summaries, questions):
    parameters = {"limit": None, "out": Path("out")}
    write_results(tmp_path, summaries[:1], questions, parameters, 0.75, is_done=False)
    written = json.loads((tmp_path / "results.json").read_text())
    assert len(written["settings"]) == 1 and written["best"] is None
    write_results(tmp_path, summaries, questions, parameters, 0.75, is_done=True)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["environment"]["torch"]
    assert written["parameters"] == {"limit": None, "out": "out"}
    assert written["best"] == {"by_flops": "dual", "by_seconds": "dual"}
    dual = written["settings"][1]
    assert dual["vllm_xargs"] == DUAL.xargs
    assert dual["seconds_ratio"] == 0.5 and dual["seconds_per_question"] == 1.25
    assert [p["prediction"] for p in dual["predictions"]] == [
        *("It is a.", "It is b.", "It is c.", "?")
    ]
    assert [p["right"] for p in dual["predictions"]] == [True, True, True, False]
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["setting"] for row in rows] == ["exact", "dual", "fastv 0.5@2"]
    for row, entry in zip(rows, written["settings"], strict=True):
        assert float(row["accuracy"]) == entry["accuracy"]
        assert float(row["flops"]) == entry["flops"]
        assert float(row["accuracy_word"]) == entry["accuracy_by_task"]["word"]["value"]
        assert int(row["steps"]) == entry["denoising_steps"] == 16
        assert row["cache"] == entry["vllm_xargs"]["cache"]
        assert "predictions" not in row
    assert (rows[0]["prune_layer"], rows[2]["prune_layer"]) == ("", "2")


def test_plots(tmp_path, summaries):
    require_matplotlib()
    names = ["accuracy-flops.png", "accuracy-seconds.png"]
    draw_plots(tmp_path, summaries, 0.95)
    files = sorted(tmp_path.glob("accuracy-*"))
    assert [file.name for file in files] == names
    for file in files:
        with Image.open(file) as image:
            assert image.width > 1000
            assert len(image.convert("RGB").getcolors(1 << 20)) > 20
    unknown = [replace(summary, flops=None) for summary in summaries]
    for file in files:
        file.unlink()
    draw_plots(tmp_path, unknown, 1.0)
    assert [file.name for file in tmp_path.glob("accuracy-*")] == names[1:]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1))
def test_frontier(points):
    best = frontier(points)
    chosen = [points[i] for i in best]
    assert chosen == sorted(chosen)
    for cost, value in points:
        assert any(c <= cost and v >= value for c, v in chosen)
    for i, (cost, value) in enumerate(chosen):
        assert not any(
            c <= cost and v >= value for j, (c, v) in enumerate(chosen) if j != i
        )


# --- steps that were not observed ------------------------------------------------


@pytest.mark.parametrize(
    "values, steps, num_tokens, is_ended, expected",
    [
        ({}, 16, 16, False, (8, 8)),
        ({}, 11, 9, True, (8, 3)),
        ({}, 8, 3, True, (8,)),
        ({"steps": 4}, 3, 9, True, (2, 1)),
        # No more steps than masks.
        ({"steps": 32}, 16, 16, False, (8, 8)),
        ({"confidence_threshold": 0.9}, 5, 16, False, (3, 2)),
        ({"confidence_threshold": 0.9}, 5, 3, True, (5,)),
        # The end token is the first of the second block.
        ({"confidence_threshold": 0.9}, 5, 8, True, (3, 2)),
        ({"confidence_factor": 2.0}, 2, 16, False, (1, 1)),
    ],
)
def test_steps_by_block(values, steps, num_tokens, is_ended, expected):
    setting = plan_sweep(LENGTHS, [values])[-1]
    found = answer(steps=steps, num_tokens=num_tokens, is_ended=is_ended)
    assert steps_by_block(resolved(setting), found) == expected


def test_what_is_an_estimate():
    sure, adaptive = (
        plan_sweep(LENGTHS, [values])[-1]
        for values in (
            {"confidence_threshold": 0.9},
            {"prune_rate": 0.5, "prune_policy": "adaptive"},
        )
    )
    seen = answer(masks=(StepMasks(StepIndex(0, 0, 0), 8, 16),))
    assert not is_estimate(EXACT, answer())
    assert is_estimate(EXACT, answer(is_ended=True))
    assert not is_estimate(EXACT, replace(seen, is_ended=True))
    assert is_estimate(sure, answer()) and not is_estimate(sure, seen)
    assert is_estimate(adaptive, seen)


def test_no_report():
    for params in (None, {}, {"lladav": {"steps": 1}}):
        with pytest.raises(ValueError, match="is it LLaDA-V, served with vllm-lladav"):
            Answer.with_report(params, text="")
