# SPDX-License-Identifier: Apache-2.0
"""Clients that leave in every phase of a request."""

import io
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import requests
from PIL import Image

from tests.server.client import ENDLESS, Json, greedy_tokens, small_chat, user_message
from tests.server.metrics import wait_for_metrics

MOST_WAIT_S = 1.2
"""Until a client leaves: the first ones are reading pictures then, the last ones have
had their pruning and cached steps."""

GAUGES = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
)

_LONG = ENDLESS["vllm_xargs"]
KINDS: dict[str, Json] = {
    "exact": {**_LONG, "prune_rate": 0},
    "pruned": {**_LONG, "prune_rate": 0.75, "prune_layer": 1},
    "pruned late": {**_LONG, "prune_stages": "2:1:0.5,20:2:0.5"},
    "cached": {**_LONG, "cache": "dual", "prune_rate": 0},
    "cached and pruned": {**_LONG, "cache": "prefix", "prune_rate": 0.5},
    "guided": {**_LONG, "cfg_scale": 1.5, "prune_rate": 0},
    "guided and pruned": {**_LONG, "cfg_scale": 1.5, "prune_rate": 0.5},
}


def cancel_in_every_phase(url: str, number: int, seed: int) -> None:
    """Send ``number`` requests with pictures of their own, more at a time than the
    server runs, and hang up on each at a random moment. Everything is free afterwards,
    and answers are what they were."""
    before = greedy_tokens(url)
    rng = random.Random(seed)
    plans = [
        (rng.choice(list(KINDS)), rng.random() < 0.5, MOST_WAIT_S * rng.random(), index)
        for index in range(number)
    ]
    with ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda plan: _leave(url, *plan), plans))
    # Gauges are set by steps, and none need follow the last client that left.
    assert greedy_tokens(url) == before
    values = wait_for_metrics(url, lambda values: not any(map(values.get, GAUGES)))
    assert [values[name] for name in GAUGES] == [0, 0, 0]


def _leave(url: str, kind: str, stream: bool, seconds: float, index: int) -> None:
    picture = Image.linear_gradient("L").rotate(index).resize((120 + index % 80, 90))
    png = io.BytesIO()
    picture.save(png, "PNG")
    fields: Json = {
        **ENDLESS,
        "messages": [user_message("w5", png.getvalue())],
        "vllm_xargs": KINDS[kind],
        "stream": stream,
    }
    path = f"{url}/v1/chat/completions"
    leaves_at = time.monotonic() + seconds
    with (
        suppress(requests.RequestException),
        requests.post(
            path, json=small_chat(**fields), stream=True, timeout=seconds
        ) as response,
    ):
        assert response.status_code == 200, response.text
        for _ in response.iter_lines():
            if time.monotonic() > leaves_at:
                return
