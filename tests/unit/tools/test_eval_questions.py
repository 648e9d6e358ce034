# SPDX-License-Identifier: Apache-2.0
"""Questions are read, or refused with the place of what is wrong."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from vllm_lladav.tools.eval.questions import Question, read_questions

LINE = {"id": "a", "image": "photo.png", "question": "What?", "answer": "this"}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    return tmp_path


def write(directory: Path, *lines: object) -> Path:
    file = directory / "questions.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    file.write_text("\n".join(texts), encoding="utf-8")
    return file


def test_file_or_directory(directory):
    file = write(directory, LINE, "", {**LINE, "id": 7, "task": "word", "kind": None})
    photo = directory / "photo.png"
    expected = [
        Question("a", photo, "What?", "this"),
        Question("7", photo, "What?", "this", task="word"),
    ]
    assert read_questions(file) == read_questions(directory) == expected


def test_limit(directory):
    """What is behind it is not looked at."""
    write(directory, LINE, {**LINE, "id": "b"}, "nonsense")
    assert [question.id for question in read_questions(directory, 2)] == ["a", "b"]


@pytest.mark.parametrize(
    "line, message",
    [
        ("nonsense", "line 2: no JSON: "),
        ([1], "line 2: no JSON object"),
        ({"id": "b", "image": "photo.png", "question": "?"}, "line 2: answer is missi"),
        ({**LINE, "id": None}, "line 2: id must be text"),
        ({**LINE, "id": True}, "line 2: id must be text"),
        ({**LINE, "question": " "}, "line 2: question must be text that is not empty"),
        ({**LINE, "answer": 3}, "line 2: answer must be text that is not empty: 3"),
        ({**LINE, "task": 3}, "line 2: task must be text"),
        ({**LINE, "image": "none.png"}, "line 2: image: .*none.png is no file"),
        (LINE, "id 'a' stands 2 times"),
    ],
)
def test_what_is_wrong(directory, line, message):
    file = write(directory, LINE, line)
    with pytest.raises(ValueError, match=f"{re.escape(str(file))}.*{message}"):
        read_questions(file)


def test_no_questions(directory):
    with pytest.raises(ValueError, match="has no questions"):
        read_questions(write(directory, ""))
    with pytest.raises(ValueError, match="no UTF-8"):
        file = directory / "questions.jsonl"
        file.write_bytes(b"\xff")
        read_questions(file)
    with pytest.raises(FileNotFoundError):
        read_questions(directory / "none.jsonl")
