# SPDX-License-Identifier: Apache-2.0
"""Scripts of examples/clients whose client is installed here, against the server.

They get what a request without a client gets: the checkpoint has random weights, so
there is no right answer.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.client import MODEL, Json, post, small_chat, user_message
from tests.server.process import ServerProcess

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "clients"
FIELDS: dict[str, Json] = {
    "picture": {},
    "streaming": {"block_length": 16},
    "xargs": {"steps": 16},
}
"""``vllm_xargs`` of the trials with a picture."""


def run(script: str, server: ServerProcess, *trials: str) -> list[Json]:
    done = subprocess.run(
        [sys.executable, str(FOLDER / script), *trials],
        env={**os.environ, "BASE_URL": f"{server.url}/v1", "MODEL": MODEL},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines: list[Json] = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["trial"] for line in lines] == list(trials)
    return lines


@pytest.fixture(scope="module")
def expected(server: ServerProcess) -> list[str]:
    """Answers to the picture, with each of :data:`FIELDS`."""
    picture = user_message("Describe the picture.", ROOT / "docs" / "picture.png")
    bodies = [
        small_chat(messages=[picture], max_tokens=64, vllm_xargs=xargs)
        for xargs in FIELDS.values()
    ]
    answers = [post(server.url, "chat/completions", body).json() for body in bodies]
    return [answer["choices"][0]["message"]["content"] for answer in answers]


@pytest.mark.parametrize("script", ["openai_chat.py", "openai_responses.py"])
def test_picture(script: str, server: ServerProcess, expected: list[str]):
    answers = [line["answer"] for line in run(script, server, *FIELDS)]
    assert answers == expected


def test_text_in_pieces(server: ServerProcess):
    whole, pieces = run("openai_completions.py", server, "xargs", "streaming")
    assert whole["answer"] and whole["pieces"] == 1
    assert pieces["answer"] and pieces["pieces"] > 1
