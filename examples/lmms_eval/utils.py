# SPDX-License-Identifier: Apache-2.0
"""Functions of the lmms-eval task ``lladav_questions``.

The environment variable ``LLADAV_QUESTIONS`` names the directory that
``examples/tiny/questions.py`` wrote; the default is ``questions``.
"""

import os
from pathlib import Path
from typing import Any

from PIL import Image

DIRECTORY = Path(os.environ.get("LLADAV_QUESTIONS", "questions"))
QUESTIONS = str(DIRECTORY / "questions.jsonl")


def visual(doc: dict[str, Any]) -> list[Image.Image]:
    with Image.open(DIRECTORY / doc["image"]) as image:
        return [image.convert("RGB")]


def text(doc: dict[str, Any]) -> str:
    return str(doc["question"])


def results(doc: dict[str, Any], answers: list[str]) -> dict[str, float]:
    return {"exact_match": float(_plain(answers[0]) == _plain(doc["answer"]))}


def _plain(answer: str) -> str:
    """``answer`` as `vllm-lladav eval` compares it: case, spaces, full stop."""
    return " ".join(answer.casefold().split()).removesuffix(".").rstrip()
