# SPDX-License-Identifier: Apache-2.0
"""``vllm-lladav eval`` before any model is loaded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from vllm_lladav.tools import command


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    line = {"id": "a", "image": "photo.png", "question": "What?", "answer": "this"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(line))
    return tmp_path


def complaint(capsys, questions: Path, *flags: str, exit_code: int = 2) -> str:
    """What is said about wrong arguments."""
    out = questions / "out"
    arguments = ["eval", "--questions", str(questions), "--out", str(out), *flags]
    assert command.main(arguments) == exit_code
    captured = capsys.readouterr()
    assert captured.out == ""
    error = captured.err.splitlines()[-1]
    prefix = "vllm-lladav eval: error: "
    assert error.startswith(prefix)
    return error.removeprefix(prefix)


def test_help_needs_neither_vllm_nor_torch():
    code = (
        "import sys; from vllm_lladav.tools.command import main\n"
        "try: main(['eval', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'vllm', 'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for flag in ("--prune-rate", "--confidence-threshold", "--url", "--keep"):
        assert flag in done.stdout


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--prune-rate", "0,1.5"], "prune_rate must be at least 0 (off) and below 1"),
        (["--prune-layer", "2,x"], "prune_layer must be an integer: 'x'"),
        (["--cache", "none,all"], "cache must be one of none, prompt, prefix, dual"),
        (["--setting", "cache"], "'cache' is not name=value"),
        (["--gen-length", "12", "--steps", "many"], "steps must be an integer"),
        (["--keep", "95"], "--keep must be above 0 and at most 1: 95.0"),
        (["--engine-args", "dtype"], "--engine-args is no JSON"),
        (["--engine-args", "[]"], "--engine-args must be a JSON object"),
    ],
)
def test_bad_values(capsys, questions, flags, message):
    assert message in complaint(capsys, questions, *flags)
    assert not (questions / "out").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--prune-rate", "0.5", "--prune-layer", "99"], "prune_layer must be at most"),
        (["--gen-length", "12", "--block-length", "5"], "block_length must be a divi"),
        (["--gen-length", "12", "--block-length", "4", "--steps", "5"], "steps must"),
        (["--cfg-scale", "1", "--concurrency", "1"], "guidance needs 2"),
    ],
)
def test_values_that_the_model_does_not_take(
    capsys, questions, tiny_checkpoint, flags, message
):
    model = str(tiny_checkpoint)
    assert message in complaint(capsys, questions, "--model", model, *flags)


def test_no_such_model(capsys, questions):
    assert "none" in complaint(capsys, questions, "--model", "/none/such")


def test_no_server(capsys, questions):
    url = "http://127.0.0.1:1"
    assert "the server: Connection error." in complaint(
        capsys, questions, "--url", url, exit_code=1
    )


def test_questions_are_read_first(capsys, questions):
    (questions / "questions.jsonl").write_text("{}")
    assert "line 1: id is missing" in complaint(capsys, questions)


def test_missing_matplotlib_is_said_before_anything_runs(
    capsys, questions, monkeypatch
):
    from vllm_lladav.tools.eval import plots

    monkeypatch.setattr(plots, "find_spec", lambda name: None)
    text = complaint(capsys, questions)
    assert "pip install 'vllm-lladav[bench]'" in text and "--no-plots" in text


@pytest.mark.parametrize(
    "flags", [["--limit", "0"], ["--concurrency", "x"], ["--warm-up", "-1"]]
)
def test_counts(questions, flags):
    with pytest.raises(SystemExit) as end:
        command.main(["eval", "--questions", str(questions), *flags])
    assert end.value.code == 2
