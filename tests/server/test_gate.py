# SPDX-License-Identifier: Apache-2.0
"""Who gets in: keys and a full queue."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.server.client import ENDLESS, assert_refused, small_chat
from tests.server.process import ServerProcess, running_server

KEY = {"Authorization": "Bearer secret"}
QUEUE = 3


@pytest.fixture(scope="module")
def guarded_server(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("gate") / "log"
    flags = ("--api-key", "secret", "--max-num-queued-reqs", str(QUEUE))
    with running_server(tiny_checkpoint, log, *flags) as server:
        yield server


@pytest.fixture(scope="module")
def routes(guarded_server: ServerProcess) -> list[tuple[str, str]]:
    """Methods and paths of everything that the server has."""
    schema = requests.get(f"{guarded_server.url}/openapi.json", headers=KEY, timeout=10)
    paths = schema.json()["paths"]
    found = [(method, path) for path, methods in paths.items() for method in methods]
    return [*found, ("get", "/docs"), ("get", "/redoc"), ("get", "/openapi.json")]


def test_every_route_needs_the_key(
    guarded_server: ServerProcess, routes: list[tuple[str, str]]
) -> None:
    """But those that tell nothing of anybody."""
    answers = {
        path: requests.request(
            method, guarded_server.url + path, json={}, timeout=10
        ).status_code
        for method, path in routes
    }
    open_paths = {path for path, status in answers.items() if status != 401}
    assert len(answers) > 20
    assert open_paths == {"/health", "/ping", "/version", "/metrics"}


def test_nobody_watches_by_default(guarded_server: ServerProcess) -> None:
    """There is neither the page nor what it asks for."""
    page = requests.get(f"{guarded_server.url}/lladav/", headers=KEY, timeout=10)
    assert page.status_code == 404
    body = small_chat(stream=True)
    body["vllm_xargs"]["live_canvas"] = 1
    url = f"{guarded_server.url}/v1/chat/completions"
    refused = requests.post(url, json=body, headers=KEY, timeout=20)
    assert_refused(refused, "live_canvas needs a server that runs with")


def test_wrong_key(guarded_server: ServerProcess) -> None:
    url = f"{guarded_server.url}/tokenize"
    wrong = {"Authorization": "Bearer wrong"}
    response = requests.post(url, json={}, headers=wrong, timeout=10)
    assert response.status_code == 401
    assert response.json()["error"]["message"] == "Unauthorized"
    right = {"model": "lladav", "prompt": "w1 w2"}
    assert requests.post(url, json=right, headers=KEY, timeout=10).ok


@pytest.mark.parametrize("stream", [False, True])
def test_full_queue_tells_when_to_come_again(
    guarded_server: ServerProcess, stream: bool
) -> None:
    """And takes requests again as soon as there is room."""
    url = f"{guarded_server.url}/v1/chat/completions"

    def ask(**fields: object) -> requests.Response:
        return requests.post(
            url, json=small_chat(**fields), headers=KEY, stream=True, timeout=20
        )

    running = [ask(stream=True, **ENDLESS) for _ in range(QUEUE)]
    try:
        refused = ask(stream=stream)
    finally:
        for response in running:
            response.close()
    assert [response.status_code for response in running] == [200] * QUEUE
    assert refused.status_code == 503
    assert int(refused.headers["Retry-After"]) > 0
    assert "busy" in refused.json()["error"]["message"]
    deadline = time.monotonic() + 20
    while (last := ask()).status_code != 200 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert last.status_code == 200
