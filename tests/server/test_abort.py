# SPDX-License-Identifier: Apache-2.0
"""Clients that go away."""

import time

import pytest
import requests

from tests.server.cancelling import cancel_in_every_phase
from tests.server.client import ENDLESS, small_chat
from tests.server.metrics import is_idle, read_metrics, wait_for_metrics
from tests.server.process import ServerProcess


def test_disconnecting_in_mid_stream_frees_everything(server: ServerProcess) -> None:
    """Work on the request ends, and its KV blocks are free again."""
    before = wait_for_metrics(server.url, is_idle)
    body = small_chat(stream=True, **ENDLESS)
    url = f"{server.url}/v1/chat/completions"
    with requests.post(url, json=body, stream=True, timeout=60) as response:
        lines = response.iter_lines()
        while b'"content":" w' not in next(lines):
            pass
        running = read_metrics(server.url)
    assert running["vllm:num_requests_running"] == 1
    assert running["vllm:kv_cache_usage_perc"] > 0
    _assert_idle(server, before.get("lladav:denoising_steps_total", 0))


def test_giving_up_on_a_whole_answer_frees_everything(server: ServerProcess) -> None:
    """The same for a client that times out without streaming."""
    before = wait_for_metrics(server.url, is_idle)
    url = f"{server.url}/v1/chat/completions"
    with pytest.raises(requests.ReadTimeout):
        requests.post(url, json=small_chat(**ENDLESS), timeout=1)
    _assert_idle(server, before.get("lladav:denoising_steps_total", 0))


def test_reader_that_does_not_read_holds_nobody_up(server: ServerProcess) -> None:
    """Nor anything, once it is gone."""
    before = wait_for_metrics(server.url, is_idle)
    url = f"{server.url}/v1/chat/completions"
    body = small_chat(stream=True, **ENDLESS)
    with requests.post(url, json=body, stream=True, timeout=60):
        answer = requests.post(url, json=small_chat(), timeout=30)
        assert answer.status_code == 200
        assert read_metrics(server.url)["vllm:num_requests_running"] == 1
    _assert_idle(server, before.get("lladav:denoising_steps_total", 0))


def test_leaving_in_every_phase_frees_everything(server: ServerProcess) -> None:
    cancel_in_every_phase(server.url, number=150, seed=1)


def _assert_idle(server: ServerProcess, steps_before: float) -> None:
    after = wait_for_metrics(server.url, is_idle)
    assert after["vllm:num_requests_running"] == 0
    assert after["vllm:num_requests_waiting"] == 0
    assert after["vllm:kv_cache_usage_perc"] == 0
    steps = after["lladav:denoising_steps_total"]
    assert 0 < steps - steps_before < ENDLESS["vllm_xargs"]["steps"]
    time.sleep(0.5)
    assert read_metrics(server.url)["lladav:denoising_steps_total"] == steps
