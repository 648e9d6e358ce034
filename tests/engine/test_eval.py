# SPDX-License-Identifier: Apache-2.0
"""A sweep through a real engine: its answers, and what they are said to cost."""

import csv
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

from vllm_lladav.tools import command
from vllm_lladav.tools.checkpoint import read_checkpoint
from vllm_lladav.tools.eval import engine as eval_engine
from vllm_lladav.tools.eval.cost import flops, is_estimate, prompt_bound
from vllm_lladav.tools.eval.engine import EngineTarget
from vllm_lladav.tools.eval.questions import Question, read_questions
from vllm_lladav.tools.eval.settings import plan_sweep

LENGTHS = {"gen_length": 8, "block_length": 4}
SETTINGS = plan_sweep(
    LENGTHS,
    [
        {"prune_rate": 0.75, "prune_layer": 2, "prune_policy": "random"},
        {"cache": "dual", "confidence_threshold": 0.02, "prune_rate": 0.5},
    ],
)
TEXTS = ("What?", "Where is the blue one?", "Which one?")


@pytest.fixture
def questions(tmp_path: Path, golden_cases) -> list[Question]:
    """Of pictures with different numbers of tiles."""
    square = golden_cases["img_square"].image_paths[0]
    (tmp_path / "square.png").write_bytes(square.read_bytes())
    Image.effect_noise((600, 300), 80).convert("RGB").save(tmp_path / "wide.png")
    lines = [
        {"id": i, "image": image, "question": text, "answer": "?", "task": task}
        for i, (text, image, task) in enumerate(
            zip(TEXTS, ("square.png", "wide.png", "square.png"), "aba", strict=True)
        )
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    return read_questions(file)


def direct_texts(llm, questions, setting) -> list[str]:
    """What the engine says, one question after the other."""
    texts = []
    for seed, question in enumerate(questions):
        content = [
            {"type": "image_pil", "image_pil": Image.open(question.image)},
            {"type": "text", "text": question.text},
        ]
        params = SamplingParams(
            max_tokens=None, temperature=0, seed=seed, extra_args=setting.xargs
        )
        messages = [{"role": "user", "content": content}]
        (output,) = llm.chat(messages, params, use_tqdm=False)
        texts.append(output.outputs[0].text)
    return texts


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.label)
def test_answers_are_the_engines(engine, questions, setting, tiny_checkpoint):
    answers = EngineTarget(engine.llm).ask(questions, setting)
    assert engine.state.on_step is None
    expected = direct_texts(engine.llm, questions, setting)
    assert [answer.text for answer in answers] == expected
    rate = setting.xargs["prune_rate"]
    checkpoint = read_checkpoint(str(tiny_checkpoint))
    for question, answer in zip(questions, answers, strict=True):
        dropped = answer.visual_tokens - answer.visual_tokens_kept
        assert dropped == int(rate * answer.visual_tokens)
        assert answer.masks is not None and len(answer.masks) == answer.steps
        assert answer.prompt_len < prompt_bound(checkpoint, question)
        assert not is_estimate(setting, answer)
        cost = flops(checkpoint, setting, question, answer)
        unseen = replace(answer, masks=None)
        if not is_estimate(setting, unseen):
            assert cost == flops(checkpoint, setting, question, unseen)


def test_refusals(engine, questions):
    target = EngineTarget(engine.llm)
    (_, setting) = plan_sweep(LENGTHS, [{"prune_rate": 0.5, "prune_layer": 9}])
    with pytest.raises(VLLMValidationError, match="prune_layer must be at most 4"):
        target.ask(questions, setting)
    assert engine.state.on_step is None
    assert not engine.is_busy


def test_workers_in_other_processes(engine, questions, monkeypatch):
    """Steps are not observed there."""

    def refuse(_):
        raise ValueError("one worker in this process only")

    monkeypatch.setattr(eval_engine, "denoising_state", refuse)
    (exact,) = plan_sweep({"gen_length": 2, "block_length": 2}, [])
    (answer,) = EngineTarget(engine.llm).ask(questions[:1], exact)
    assert (answer.steps, answer.masks) == (2, None)


def test_command(engine, questions, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    """From flags to files; the right answer of one question is what exact mode says."""
    monkeypatch.setattr(eval_engine, "running", lambda *_: nullcontext(engine.llm))
    (exact,) = plan_sweep({"gen_length": 4, "block_length": 2}, [])
    said = direct_texts(engine.llm, questions, exact)
    file, out = tmp_path / "questions.jsonl", tmp_path / "out"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[1]["answer"] = said[1]
    file.write_text("\n".join(map(json.dumps, lines)))
    arguments = ["eval", "--questions", str(file), "--out", str(out)]
    arguments += ["--model", str(tiny_checkpoint), "--warm-up", "1"]
    arguments += ["--gen-length", "4", "--block-length", "2", "--keep", "1"]
    arguments += ["--prune-rate", "0,0.75", "--cache", "none,dual", "--setting"]
    assert command.main([*arguments, "mine: cache=prompt,refresh_interval=1"]) == 0
    found = json.loads((out / "results.json").read_text())
    labels = [entry["setting"] for entry in found["settings"]]
    assert labels == [
        *("exact", "fastv 0.75", "dual", "fastv 0.75 + dual", "mine"),
    ]
    exact, mine = found["settings"][0], found["settings"][-1]
    assert [p["prediction"] for p in exact["predictions"]] == said
    # With an interval of 1 the cache is exact.
    assert [p["prediction"] for p in mine["predictions"]] == said
    assert exact["num_right"] == mine["num_right"] == 1
    assert exact["accuracy_by_task"]["b"]["value"] == 1
    assert exact["flops"] == mine["flops"] > found["settings"][2]["flops"]
    assert found["best"]["by_flops"] in labels
    assert found["parameters"]["gen_length"] == 4
    assert found["environment"]["vllm"]
    with (out / "results.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["setting"] for row in rows] == labels
    assert {path.name for path in out.iterdir()} == {
        *("results.json", "results.csv"),
        *("accuracy-flops.png", "accuracy-seconds.png"),
    }
    printed = capsys.readouterr().out
    assert all(f"\n{label} " in printed for label in labels)
    assert "Accuracy per task:" in printed
    assert "at least 100% of exact accuracy" in printed
