# SPDX-License-Identifier: Apache-2.0
"""Bad input is refused with HTTP 400 and the name of what is wrong."""

import http.client
import json
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import requests
from openai import OpenAI

from tests.golden.cases import GoldenCase
from tests.server.bad_requests import BAD_REQUESTS, BadRequest
from tests.server.client import MODEL, Json, assert_refused, chat, post, small_chat
from tests.server.process import ServerProcess

both_ways = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


@both_ways
@pytest.mark.parametrize("bad", BAD_REQUESTS, ids=lambda bad: bad.name)
def test_chat(server: ServerProcess, bad: BadRequest, stream: bool) -> None:
    """Also when streaming: the error is the response, not an event within it."""
    body = {**bad.body, "stream": stream}
    assert_refused(post(server.url, "chat/completions", body), *bad.mentions)
    assert server.is_healthy()


@both_ways
@pytest.mark.parametrize(
    ("fields", "mentions"),
    [
        ({"prompt": [5, 126_349]}, ("prompt token ids", "126349")),
        ({"prompt": [5, 126_463]}, ("prompt token ids", "126349")),
        ({"prompt": [5, 10**9]}, ("1000000000",)),
        ({"prompt": [5, 2**70]}, (str(2**70),)),
        ({"prompt": [5, -200]}, ("prompt", "-200")),
        ({"prompt": [[5], [126_349]]}, ("prompt token ids", "126349")),
        ({"prompt": [5] * 9000}, ("prompt", "8192", "9000")),
        ({"prompt": ""}, ("prompt",)),
        ({"prompt": []}, ("prompt",)),
        ({"prompt": "w1 <image> w2"}, ("prompt", "<image>", "no image")),
        ({"prompt": "w1", "logprobs": -1}, ("logprobs",)),
        ({"prompt": "w1", "logprobs": 21}, ("logprobs", "20")),
        ({"prompt": "w1", "suffix": "w2"}, ("suffix",)),
        ({"prompt": "w1", "vllm_xargs": {"steps": 0}}, ("steps",)),
        ({"prompt_embeds": "AAAA"}, ("prompt_embeds",)),
    ],
    ids=[
        "id_past_tokenizer",
        "id_past_tokenizer_in_vocabulary",
        "id_huge",
        "id_past_64_bits",
        "id_negative",
        "second_prompt_bad",
        "too_long",
        "empty",
        "empty_list",
        "image_mark",
        "all_logprobs",
        "many_logprobs",
        "suffix",
        "steps_zero",
        "prompt_embeds",
    ],
)
def test_completion(
    server: ServerProcess,
    fields: Json,
    mentions: tuple[str, ...],
    stream: bool,
) -> None:
    body = {"model": MODEL, "max_tokens": 4, "temperature": 0, "stream": stream}
    assert_refused(post(server.url, "completions", {**body, **fields}), *mentions)
    assert server.is_healthy()


@pytest.mark.parametrize(
    ("path", "body", "mentions"),
    [
        ("v1/chat/completions", b"[]", ("JSON object", "a list")),
        ("v1/chat/completions", b"\xff{}", ("UTF-8",)),
        ("v1/chat/completions", b'{"user": "\xed\xa0\x80"}', ("UTF-8",)),
        ("v1/chat/completions", b"[" * 100_000, ("100 levels",)),
        ("v1/chat/completions", b'{"seed": ' + b"9" * 5000 + b"}", ("seed", "2**63")),
        ("invocations", b"5", ("JSON object", "5")),
        ("scale_elastic_ep", b"[]", ("JSON object", "a list")),
        ("detokenize", b'{"tokens": [5, 126464]}', ("tokens", "126464")),
        ("detokenize", b'{"tokens": [9007199254740993]}', ("tokens", "126464")),
        (
            "v1/completions",
            b'{"prompt": "w1", "structured_outputs": 5}',
            ("structured_outputs",),
        ),
        ("v1/chat/completions", b'{"messages": 0.5}', ("body.messages",)),
        ("v1/systemone", b'{"state": "w1", "questions": {}}', ("does not support",)),
        (
            "v1/responses",
            b'{"input": "w1", "vllm_xargs": {"steps": 0}, "stream": true}',
            ("steps", "at least 1"),
        ),
        (
            "v1/responses",
            b'{"input": "w1", "truncation": null, "stream": true}',
            ("truncation",),
        ),
    ],
)
def test_body(
    server: ServerProcess, path: str, body: bytes, mentions: tuple[str, ...]
) -> None:
    """Bodies that are no request, on any route, and routes that our models lack."""
    headers = {"Content-Type": "application/json"}
    response = requests.post(f"{server.url}/{path}", body, headers=headers, timeout=60)
    assert_refused(response, *mentions)


@pytest.mark.parametrize(("method", "status"), [("GET", 404), ("PATCH", 405)])
def test_no_such_route(server: ServerProcess, method: str, status: int) -> None:
    """It is an error in the form of all others."""
    path = "v1/nothing" if status == 404 else "v1/completions"
    response = requests.request(method, f"{server.url}/{path}", timeout=10)
    assert response.status_code == status
    assert response.json()["error"]["code"] == status
    assert response.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        small_chat(model="/a" * 20_000),
        small_chat(messages=[{}] * 100_000),
        small_chat(user="[" * 1_000_000),
    ],
    ids=["path", "objects", "brackets"],
)
def test_bad_request_is_refused_at_once(server: ServerProcess, body: Json) -> None:
    """However much is wrong with it: nobody else is served meanwhile."""
    begin = time.monotonic()
    post(server.url, "chat/completions", body)
    assert time.monotonic() - begin < 5


def test_bad_requests_leave_others_alone(
    client: OpenAI, server: ServerProcess, golden_cases: dict[str, GoldenCase]
) -> None:
    """A request that runs while all the bad ones come in gets its recorded answer."""
    case = golden_cases["text_32_32_32"]
    with ThreadPoolExecutor(4) as pool:
        good = [pool.submit(chat, client, case)]
        bad = [
            pool.submit(post, server.url, "chat/completions", bad.body)
            for bad in BAD_REQUESTS
        ]
        good.append(pool.submit(chat, client, case))
    assert {future.result().status_code for future in bad} == {400}
    for answer in good:
        token_ids = answer.result().choices[0].to_dict()["token_ids"]
        assert token_ids == list(case.output_ids)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/invocations"])
def test_body_that_is_announced_too_large(server: ServerProcess, path: str) -> None:
    """It is refused before any of it has come."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    connection.putrequest("POST", path)
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(65 << 20))
    connection.endheaders()
    _assert_too_large(connection)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/invocations"])
def test_body_that_does_not_end(server: ServerProcess, path: str) -> None:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    connection.putrequest("POST", path)
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    with suppress(ConnectionError):  # The server may hang up once it has answered.
        for _ in range(65):
            connection.send(chunk)
    _assert_too_large(connection)


def _assert_too_large(connection: http.client.HTTPConnection) -> None:
    response = connection.getresponse()
    assert response.status == 413
    message = json.loads(response.read())["error"]["message"]
    assert "64 MiB (--max-body-mib)" in message
