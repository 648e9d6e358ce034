# SPDX-License-Identifier: Apache-2.0
"""Questions put to a server that knows one model and one answer."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from openai import OpenAIError
from PIL import Image

from vllm_lladav.tools.eval.answers import Answer
from vllm_lladav.tools.eval.questions import Question
from vllm_lladav.tools.eval.server import ServerTarget
from vllm_lladav.tools.eval.settings import plan_sweep

(EXACT,) = plan_sweep({"gen_length": 16, "block_length": 8}, [])
REPORT = {"denoising_steps": 16, "visual_tokens": 9, "visual_tokens_kept": 4}
CHOICE = {"message": {"content": "red"}, "finish_reason": "stop"}
COMPLETION = {
    "choices": [CHOICE],
    "usage": {"prompt_tokens": 30, "completion_tokens": 2},
    "kv_transfer_params": {"lladav": REPORT},
}


class Server(ThreadingHTTPServer):
    """Keeps what it is asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models = [{"id": "lladav"}]
        self.asked: list[dict[str, Any]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.answer({"data": self.server.models})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(json.loads(body))
        self.answer(COMPLETION)

    def answer(self, content: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_: Any) -> None:
        """Nothing is logged."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        Thread(target=server.serve_forever).start()
        yield server
        server.shutdown()


def test_answers(server, tmp_path: Path):
    image = tmp_path / "photo.png"
    Image.new("RGB", (8, 8)).save(image)
    questions = [Question(name, image, f"What is {name}?", "red") for name in "abc"]
    target = ServerTarget(f"{server.url}/v1/", concurrency=2, seed=5)
    expected = Answer("red", 2, True, 30, 16, 9, 4)
    assert target.ask(questions, EXACT) == [expected] * 3
    asked = sorted(server.asked, key=lambda request: request["seed"])
    assert [request["seed"] for request in asked] == [5, 6, 7]
    for request, question in zip(asked, questions, strict=True):
        assert request["model"] == "lladav"
        assert request["vllm_xargs"] == EXACT.xargs
        assert (request["max_tokens"], request["temperature"]) == (16, 0)
        assert request["messages"][0]["content"][1]["text"] == question.text


def test_no_models(server):
    server.models = []
    with pytest.raises(OpenAIError, match="no models"):
        ServerTarget(server.url, concurrency=1)
