# SPDX-License-Identifier: Apache-2.0
"""``vllm-lladav eval --url``."""

import json
from pathlib import Path

import pytest
from openai import OpenAI

from tests.golden.cases import GoldenCase
from tests.server.client import user_message
from tests.server.metrics import Counted
from tests.server.process import ServerProcess
from vllm_lladav.tools import command

SETTINGS = ("exact", "random 0.5@2", "dual", "random 0.5@2 + dual")


@pytest.fixture
def questions(tmp_path: Path, golden_cases: dict[str, GoldenCase]) -> Path:
    """Two about one picture."""
    (picture,) = golden_cases["img_square"].image_paths
    lines = [
        {"id": i, "image": str(picture), "question": f"w{i}", "answer": "?"}
        for i in range(2)
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def test_sweep(
    server: ServerProcess,
    client: OpenAI,
    tiny_checkpoint: Path,
    questions: Path,
    golden_cases: dict[str, GoldenCase],
    tmp_path: Path,
) -> None:
    """Answers are those of plain requests, and no picture is found in a cache."""
    out = tmp_path / "out"
    arguments = ["eval", "--url", server.url, "--questions", str(questions)]
    arguments += ["--model", str(tiny_checkpoint), "--out", str(out), "--no-plots"]
    arguments += ["--gen-length", "4", "--block-length", "2", "--seed", "5"]
    arguments += ["--prune-rate", "0,0.5", "--prune-layer", "2", "--cache", "none,dual"]
    arguments += ["--prune-policy", "random", "--concurrency", "2", "--warm-up", "1"]
    with Counted(server.url) as counted:
        assert command.main(arguments) == 0
    assert counted["lladav:images_encoded_total"] == len(SETTINGS) * 3
    found = json.loads((out / "results.json").read_text())
    assert tuple(entry["setting"] for entry in found["settings"]) == SETTINGS
    visual_tokens = sum(golden_cases["img_square"].visual_tokens)
    for entry in found["settings"]:
        assert entry["flops"] > 0
        rate = entry["vllm_xargs"]["prune_rate"]
        kept = visual_tokens - int(rate * visual_tokens)
        assert entry["visual_tokens_kept"] == kept
    (picture,) = golden_cases["img_square"].image_paths
    for entry in (found["settings"][0], found["settings"][3]):
        for number, prediction in enumerate(entry["predictions"]):
            answer = client.chat.completions.create(
                model=client.models.list().data[0].id,
                messages=[user_message(f"w{number}", picture)],  # type: ignore
                temperature=0,
                seed=5 + number,
                extra_body={"vllm_xargs": entry["vllm_xargs"]},
            )
            assert prediction["prediction"] == answer.choices[0].message.content


def test_without_a_checkpoint(
    server: ServerProcess, questions: Path, tmp_path: Path
) -> None:
    """FLOPs are left out."""
    arguments = ["eval", "--url", f"{server.url}/v1/", "--questions", str(questions)]
    arguments += ["--out", str(tmp_path), "--gen-length", "2", "--limit", "1"]
    assert command.main(arguments) == 0
    (exact,) = json.loads((tmp_path / "results.json").read_text())["settings"]
    assert exact["flops"] is None and exact["seconds"] > 0
    assert {path.name for path in tmp_path.iterdir()} == {
        *("questions.jsonl", "results.json", "results.csv", "accuracy-seconds.png"),
    }


def test_refusal(
    server: ServerProcess,
    questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What the server says is shown; what was measured before is there."""
    arguments = ["eval", "--url", server.url, "--questions", str(questions)]
    arguments += ["--out", str(tmp_path), "--gen-length", "2", "--limit", "1"]
    arguments += ["--prune-rate", "0.5", "--prune-layer", "9"]
    assert command.main(arguments) == 1
    error = capsys.readouterr().err
    assert "vllm-lladav eval: error: the server: " in error
    assert "prune_layer must be at most 4" in error
    found = json.loads((tmp_path / "results.json").read_text())
    assert [entry["setting"] for entry in found["settings"]] == ["exact"]
    assert found["best"] is None
