# SPDX-License-Identifier: Apache-2.0
"""The pictures and questions that lladav-tiny was trained on, and its shipped files."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from examples.tiny import export, pictures, prompts, questions, tokenizer
from vllm_lladav.model.lladav.prompt import IMAGE_MARK, encode_with_images
from vllm_lladav.tiny import TRAINED

ENCODER = tokenizer.load()
KINDS = (*questions.WORD_KINDS, *questions.SENTENCE_KINDS)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["train", "heldout"]))
def test_held_out_things_are_never_trained_on(seed: int, split: pictures.Split):
    scene = pictures.draw_scene(random.Random(seed), split)
    held_out = [thing.is_held_out for thing in scene.things]
    assert any(held_out) == (split == "heldout")
    assert len({thing.place for thing in scene.things}) == len(scene.things)
    drawing = pictures.draw(scene, random.Random(seed))
    assert drawing.image.size == scene.size
    assert len(drawing.boxes) == len(scene.things)
    for left, top, right, bottom in drawing.boxes:
        assert -2 <= left < right <= scene.size[0] + 2
        assert -2 <= top < bottom <= scene.size[1] + 2


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(KINDS))
def test_answers_are_of_the_length_that_they_should_be(seed: int, kind: str):
    rng = random.Random(seed)
    found = questions.ask(rng, pictures.draw_scene(rng, "train"), {kind: 1.0})
    if found is None:
        return
    ids = ENCODER.encode(found.answer, add_special_tokens=False).ids
    assert ENCODER.decode(ids) == found.answer
    if found.task == "word":
        assert len(found.answer.split()) == 1 and len(ids) <= 3
    else:
        assert len(ids) <= 48


def things(*described: tuple[str, str, int]) -> pictures.Scene:
    return pictures.Scene((96, 96), tuple(pictures.Thing(*d) for d in described))


@pytest.mark.parametrize(
    ("kind", "pairs"),
    [
        ("colour", {("What colour is the star?", "blue")}),
        ("place", {("Where is the blue star?", "bottom-right")}),
        ("describe", {("a red A at top left, a blue star at bottom right.",)}),
        ("letter", {("Which letter is red?", "A")}),
    ],
)
def test_questions_about_a_scene(kind: str, pairs: set[tuple[str, ...]]):
    scene = things(("red", "A", 0), ("blue", "star", 8))
    asked = set()
    for seed in range(60):
        found = questions.ask(random.Random(seed), scene, {kind: 1.0})
        assert found is not None
        asked.add((found.question, found.answer))
    for pair in pairs:
        assert any(set(pair) <= set(one) for one in asked), asked


def test_nothing_ambiguous_is_asked():
    """Two red things: no question takes red for a name."""
    scene = things(("red", "circle", 0), ("red", "circle", 4))
    for kind in ("colour", "shape", "place"):
        assert questions.ask(random.Random(0), scene, {kind: 1.0}) is None


def test_written_questions(tmp_path: Path):
    questions.write(tmp_path, 6, "heldout", seed=1)
    lines = (tmp_path / "questions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["id"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert {row["task"] for row in rows} == {"word", "sentence"}
    for row in rows:
        assert set(row) == {"id", "image", "question", "answer", "task", "kind"}
        with Image.open(tmp_path / row["image"]) as image:
            assert image.size in pictures.SIZES
    again = tmp_path / "again"
    questions.write(again, 6, "heldout", seed=1)
    assert (again / "questions.jsonl").read_text().splitlines() == lines


def test_shipped_files_are_those_of_the_exporter():
    config = json.loads((TRAINED / "config.json").read_text())
    assert config == json.loads(json.dumps(export.model_config()))
    shipped = json.loads((TRAINED / "tokenizer.json").read_text())
    assert shipped == tokenizer.tokenizer_json()
    size = sum(f.stat().st_size for f in TRAINED.rglob("*") if f.is_file())
    assert size < 12 << 20


def test_training_prompts_are_those_of_the_server():
    from transformers import AutoTokenizer

    served = AutoTokenizer.from_pretrained(TRAINED)
    question = "What colour is the star?"
    before, behind = prompts.prompt_ids(ENCODER, question)
    text = prompts.prompt_text(question)
    assert text.count(IMAGE_MARK) == 1
    assert encode_with_images(served, text, -200) == [*before, -200, *behind]
