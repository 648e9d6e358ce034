# SPDX-License-Identifier: Apache-2.0
"""Every request is counted once: finished, refused, aborted or failed."""

import time
from collections import Counter
from contextlib import suppress

import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.server.client import ENDLESS, Json, small_chat
from tests.server.metrics import is_idle, wait_for_metrics
from tests.server.process import ServerProcess

LATE: Json = {
    **ENDLESS,
    "vllm_xargs": {**ENDLESS["vllm_xargs"], "deadline_seconds": 0.5},
}


def test_in_is_out(server: ServerProcess) -> None:
    """Also for requests that never get to the engine, and for clients that leave."""
    before = _counts_at_rest(server.url)
    for stream in (False, True):
        _ask(server, stream=stream)
        _ask(server, stream=stream, vllm_xargs={"steps": 0})
        _ask(server, stream=stream, **LATE)
        _leave(server, stream=stream, **ENDLESS)
    _ask(server, model="unknown")
    _ask(server, messages="none")
    _ask(server, n=2, temperature=1)
    wait_for_metrics(server.url, is_idle)
    counted = _settled(server.url, before, received=11)
    assert counted["received"] == 11
    assert counted["finished"] == 3
    assert counted["refused"] == 4
    assert counted["aborted"] == 2
    assert counted["failed"] == 2
    # A deadline aborts the request too, for the engine.
    assert counted["engine abort"] == 4
    assert counted["engine length"] == 4


def test_leaving_while_images_are_read_is_an_abort(server: ServerProcess) -> None:
    """The client is gone before the engine heard of the request."""
    before = _counts_at_rest(server.url)
    url = f"{server.url}/v1/chat/completions"
    body = small_chat()
    for _ in range(20):
        with suppress(requests.Timeout):
            requests.post(url, json=body, timeout=(1, 0.001))
    counted = _settled(server.url, before, received=20)
    assert counted["received"] == 20
    assert counted["aborted"] + counted["finished"] == 20
    wait_for_metrics(server.url, is_idle)


def test_deadline(server: ServerProcess) -> None:
    """A late request is given up: an error, not an answer, and everything is free."""
    start = time.monotonic()
    response = _ask(server, **LATE)
    assert 0.5 <= time.monotonic() - start < 5
    assert response.status_code == 504
    assert "deadline_seconds (0.5)" in response.json()["error"]["message"]
    streamed = _ask(server, stream=True, **LATE)
    assert streamed.status_code == 200
    assert "deadline_seconds (0.5)" in streamed.text
    assert '"code": 504' in streamed.text
    values = wait_for_metrics(server.url, is_idle)
    assert values["vllm:num_requests_running"] == 0
    assert values["vllm:kv_cache_usage_perc"] == 0


def test_deadline_that_is_kept_changes_nothing(server: ServerProcess) -> None:
    fields: Json = {"max_tokens": 8, "ignore_eos": True}
    plain = _ask(server, vllm_xargs={}, **fields).json()
    timed = _ask(server, vllm_xargs={"deadline_seconds": 50}, **fields).json()
    assert plain["choices"] == timed["choices"]


def _ask(server: ServerProcess, **fields: object) -> requests.Response:
    url = f"{server.url}/v1/chat/completions"
    return requests.post(url, json=small_chat(**fields), timeout=60)


def _leave(server: ServerProcess, stream: bool, **fields: object) -> None:
    """Hang up while the request runs."""
    url = f"{server.url}/v1/chat/completions"
    body = small_chat(stream=stream, **fields)
    if stream:
        with requests.post(url, json=body, stream=True, timeout=60) as response:
            next(response.iter_lines())
    else:
        with suppress(requests.Timeout):
            requests.post(url, json=body, timeout=1)


def _settled(url: str, before: Counter[str], received: int) -> Counter[str]:
    """What was counted since ``before``, once all have ended."""
    deadline = time.monotonic() + 20
    while True:
        counted = _counts(url)
        counted.subtract(before)
        if _ended(counted) == received or time.monotonic() > deadline:
            return counted
        time.sleep(0.1)


def _counts_at_rest(url: str) -> Counter[str]:
    """What was counted once no request of an earlier test is left."""
    wait_for_metrics(url, is_idle)
    counts = _counts(url)
    return _settled(url, Counter(), received=counts["received"])


def _ended(counts: Counter[str]) -> int:
    return sum(counts[o] for o in ("finished", "refused", "aborted", "failed"))


def _counts(url: str) -> Counter[str]:
    """Requests received, by outcome, and by what vLLM says of those in the engine."""
    counts: Counter[str] = Counter()
    text = requests.get(f"{url}/metrics", timeout=10).text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            value = int(sample.value) if sample.value == sample.value else 0
            if sample.name == "lladav:requests_received_total":
                counts["received"] += value
            elif sample.name == "lladav:requests_ended_total":
                counts[sample.labels["outcome"]] += value
            elif sample.name == "vllm:request_success_total":
                counts["engine " + sample.labels["finished_reason"]] += value
    return counts
