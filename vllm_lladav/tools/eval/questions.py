# SPDX-License-Identifier: Apache-2.0
"""Questions about pictures: read from JSONL files, sent as OpenAI messages."""

import base64
import json
import mimetypes
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_REQUIRED = ("id", "image", "question", "answer")
_OPTIONAL = ("task", "kind")


@dataclass(frozen=True)
class Question:
    """One question about one picture, and the answer that is right.

    Attributes:
        id: unique in its file.
        image: the picture's file.
        text: the question.
        answer: the right one.
        task: questions are scored per task; empty for none.
        kind: a finer division; empty for none.
    """

    id: str
    image: Path
    text: str
    answer: str
    task: str = ""
    kind: str = ""


def read_questions(path: Path, limit: int | None = None) -> list[Question]:
    """The questions of a JSONL file, or of ``questions.jsonl`` in a directory.

    Args:
        limit: no more than so many, from the start.

    Raises:
        ValueError: naming file, line and field.
        OSError: if the file cannot be read.
    """
    file = path / "questions.jsonl" if path.is_dir() else path
    questions: list[Question] = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no UTF-8 text: {error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            questions.append(_read_line(line, file.parent))
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}") from None
        if len(questions) == limit:
            break
    if not questions:
        raise ValueError(f"{file} has no questions")
    (most_common, times), *_ = Counter(q.id for q in questions).most_common(1)
    if times > 1:
        raise ValueError(f"{file}: id {most_common!r} stands {times} times")
    return questions


def messages(question: Question) -> list[dict[str, Any]]:
    """OpenAI messages with the question's picture and text.

    The picture's file is another one every time: vLLM caches what is made of a file by
    its bytes, and no setting may find the pictures of the one before. What stands
    behind the end of an image no decoder looks at.
    """
    kind = mimetypes.guess_type(question.image)[0] or "image/png"
    file = question.image.read_bytes() + uuid.uuid4().bytes
    data = base64.b64encode(file).decode()
    picture = {
        "type": "image_url",
        "image_url": {"url": f"data:{kind};base64,{data}"},
    }
    text = {"type": "text", "text": question.text}
    return [{"role": "user", "content": [picture, text]}]


def _read_line(line: str, directory: Path) -> Question:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError("no JSON object")
    if isinstance(values.get("id"), int) and not isinstance(values["id"], bool):
        values["id"] = str(values["id"])
    given = [name for name in _OPTIONAL if values.get(name) is not None]
    found: dict[str, Any] = {name: _text(values, name) for name in (*_REQUIRED, *given)}
    image = directory / found.pop("image")
    if not image.is_file():
        raise ValueError(f"image: {image} is no file")
    return Question(image=image, text=found.pop("question"), **found)


def _text(values: dict[str, Any], name: str) -> str:
    if name not in values:
        raise ValueError(f"{name} is missing")
    value = values[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} must be text that is not empty: {value!r}")
    return value
