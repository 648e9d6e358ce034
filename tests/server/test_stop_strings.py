# SPDX-License-Identifier: Apache-2.0
"""Stop strings as OpenAI means them: anywhere in the text, and never sent."""

import re
from collections import Counter
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import OpenAI

from tests.server.client import MODEL, post, small_chat
from tests.server.metrics import Counted
from tests.server.process import ServerProcess
from tests.stop_strings import cut_at, stops_for

FIELDS: dict[str, Any] = {
    "max_tokens": 32,
    "ignore_eos": True,
    "vllm_xargs": {"block_length": 8, "steps": 16},
}


@pytest.fixture(scope="module")
def whole(server: ServerProcess) -> str:
    response = post(server.url, "chat/completions", small_chat(**FIELDS))
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_stream_never_has_a_stop(
    server: ServerProcess, client: OpenAI, whole: str, data: st.DataObject
) -> None:
    """Each piece continues the answer, which is cut as that of a plain request."""
    stops = data.draw(stops_for(whole))
    text, stop = cut_at(whole, stops)
    body = small_chat(**FIELDS, stop=stops)
    choice = post(server.url, "chat/completions", body).json()["choices"][0]
    assert choice["message"]["content"] == text
    assert choice["stop_reason"] == stop
    extra = {name: body.pop(name) for name in ("vllm_xargs", "ignore_eos")}
    streamed = ""
    reasons = []
    for chunk in client.chat.completions.create(**body, extra_body=extra, stream=True):
        streamed += chunk.choices[0].delta.content or ""
        assert text.startswith(streamed)
        reasons.append(chunk.choices[0].finish_reason)
    assert streamed == text
    assert [reason for reason in reasons if reason] == [choice["finish_reason"]]


def test_stopped_answer_says_what_was_done(server: ServerProcess, whole: str) -> None:
    """Figures, usage and counters, although the engine was told to give up."""
    stop = whole.split()[2][1:]
    body = small_chat(**FIELDS, stop=stop, return_token_ids=True)
    before = _finished(server)
    with Counted(server.url) as counted:
        answer = post(server.url, "chat/completions", body).json()
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == len(choice["token_ids"]) == 3
    figures = answer["kv_transfer_params"]["lladav"]
    assert 0 < figures["denoising_steps"] < 16
    assert counted["lladav:tokens_per_step_count"] == 1
    assert _finished(server) - before == Counter(stop=1)


def _finished(server: ServerProcess) -> Counter[str]:
    """Requests by what vLLM says ended them."""
    text = requests.get(f"{server.url}/metrics", timeout=10).text
    row = r'^vllm:request_success_total\{.*finished_reason="(\w+)".*\} (\S+)$'
    return Counter({reason: int(float(n)) for reason, n in re.findall(row, text, re.M)})


def test_several_answers_end_each_at_its_own_stop(
    server: ServerProcess, whole: str
) -> None:
    """With ``n``, one may be stopped and another not."""
    fields = {**FIELDS, "n": 3, "temperature": 1.0, "seed": 5}
    plain = post(server.url, "chat/completions", small_chat(**fields)).json()
    texts = [choice["message"]["content"] for choice in plain["choices"]]
    stop = texts[1][2:6]
    body = small_chat(**fields, stop=[stop])
    answer = post(server.url, "chat/completions", body).json()
    for text, choice in zip(texts, answer["choices"], strict=True):
        assert choice["message"]["content"] == cut_at(text, [stop])[0]


def test_completion_keeps_the_stop_if_asked_to(
    client: OpenAI, server: ServerProcess
) -> None:
    extra = {"vllm_xargs": FIELDS["vllm_xargs"], "ignore_eos": True}
    fields: dict[str, Any] = {"model": MODEL, "prompt": "w1 w2", "max_tokens": 32}
    plain = client.completions.create(**fields, temperature=0, extra_body=extra)
    stop = plain.choices[0].text[7:12]
    extra["include_stop_str_in_output"] = True
    fields["stop"] = stop
    kept = client.completions.create(**fields, temperature=0, extra_body=extra)
    assert kept.choices[0].text == cut_at(plain.choices[0].text, [stop], True)[0]
    assert kept.choices[0].text.endswith(stop)
