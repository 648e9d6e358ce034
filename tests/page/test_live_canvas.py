# SPDX-License-Identifier: Apache-2.0
"""The events of a canvas, from a real server."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import requests

from tests.golden.cases import GoldenCase
from tests.page.watching import Watched, body_of, chunks_of, watch
from tests.server.client import (
    ENDLESS,
    assert_refused,
    openai_client,
    post,
    small_chat,
)
from tests.server.process import ServerProcess

Case = tuple[str, dict[str, Any]]

CASES: dict[str, Case] = {
    "exact": ("text_32_8_32", {}),
    "one step of many": ("text_16_16_40", {}),
    "stopped": ("text_stop_blocks", {}),
    "stopped at once": ("text_stop_first", {}),
    "stopped in the text": ("text_stop", {"stop_search": "text"}),
    "suffix": ("text_suffix_stop", {}),
    "mask in the prompt": ("text_mask_in_prompt", {}),
    "guided": ("text_cfg", {"cfg_scale": 1.5}),
    "confident": ("text_32_8_32", {"confidence_threshold": 0.1}),
    "cached": ("text_32_8_32", {"cache": "dual"}),
    "fast": ("img_square", {"denoising": "fast", "block_length": 8}),
    "random": ("text_32_8_32", {"remasking": "random"}),
    "two pictures": ("img_two_pad_stacked", {}),
    "pruned": ("prune_r75_k3_all", {}),
    "pruned twice, later": ("img_square", {"prune_stages": "1:2:0.5,3:1:0.25"}),
    "pruned adaptively": ("img_small_2", {"prune_policy": "adaptive"}),
}


@pytest.fixture(scope="module")
def watched(
    server: ServerProcess, golden_cases: dict[str, GoldenCase]
) -> dict[str, Watched]:
    """All of them in one batch, beside the same ones that nobody watches."""
    bodies = {}
    for name, (case, xargs) in CASES.items():
        for watches in (True, False):
            body = body_of(golden_cases[case], watches, **xargs)
            bodies[f"{name}: {watches}"] = {**body, "seed": 3}
            if "prune_stages" in xargs or "prune_policy" in xargs:
                del body["vllm_xargs"]["prune_rate"]
    with ThreadPoolExecutor(len(bodies)) as pool:
        found = pool.map(lambda body: watch(server.url, body), bodies.values())
        return dict(zip(bodies, found, strict=True))


@pytest.mark.parametrize("name", CASES)
def test_events_replay_to_the_answer(watched: dict[str, Watched], name: str) -> None:
    """Which is that of a request that nobody watches."""
    seen, unseen = watched[f"{name}: True"], watched[f"{name}: False"]
    assert not unseen.events
    assert seen.token_ids == unseen.token_ids and seen.text == unseen.text
    assert seen.finish_reason == unseen.finish_reason
    assert seen.replayed() == seen.token_ids
    assert seen.events[0] is seen.start and seen.events[-1] is seen.end
    assert [step["step"] for step in seen.steps] == list(
        range(1, seen.end["steps"] + 1)
    )


@pytest.mark.parametrize(
    "name", ["exact", "one step of many", "stopped", "two pictures", "pruned"]
)
def test_steps_are_those_of_the_official_code(
    watched: dict[str, Watched], golden_cases: dict[str, GoldenCase], name: str
) -> None:
    """Position by position, with their confidence."""
    case = golden_cases[CASES[name][0]]
    transfers = watched[f"{name}: True"].transfers()
    assert len(transfers) <= len(case.steps)
    for found, step in zip(transfers, case.steps, strict=False):
        expected = {
            place: (token_id, confidence)
            for place, token_id, confidence, was_mask in zip(
                step.positions,
                step.tokens,
                step.confidence,
                step.was_mask,
                strict=True,
            )
            if was_mask and place >= 0
        }
        assert found.keys() == expected.keys()
        for place, (token_id, confidence) in expected.items():
            known = found[place][1] if np.isfinite(confidence) else -np.inf
            assert found[place][0] == token_id
            assert known == pytest.approx(confidence, rel=1e-3)


def test_lengths_and_blocks(watched: dict[str, Watched]) -> None:
    """Of a cached canvas: whole blocks, but for the steps that compute everything."""
    seen = watched["cached: True"]
    assert seen.start["canvas"] == {
        "length": 32,
        "block_length": 8,
        "answer_length": 32,
        "suffix": [],
        "mask_token_id": 126_336,
    }
    length = seen.start["prompt_tokens"] + 32
    assert {step["sequence_length"] for step in seen.steps} == {length}
    assert [step["block"] for step in seen.steps] == [n // 8 + 1 for n in range(32)]
    rows = [step["computed_tokens"] for step in seen.steps]
    assert rows == [length if n % 8 == 0 else 8 for n in range(32)]
    assert [step["masks_left"] for step in seen.steps] == list(range(31, -1, -1))


def test_what_pruning_keeps(
    watched: dict[str, Watched], golden_cases: dict[str, GoldenCase]
) -> None:
    """Positions in the prompt, and places in the grids of the picture."""
    case, seen = golden_cases["prune_r75_k3_all"], watched["pruned: True"]
    (event,) = seen.of("pruned")
    (image,), (shown,) = event["images"], seen.start["images"]
    kept = case.tensors["prune_kept_visual"]
    assert event["positions"] == (shown["offset"] + kept).tolist()
    assert event["kept"] == image["kept"] == len(kept) == case.prune_result.n_kept
    assert (shown["size"], shown["mode"]) == ([700, 500], "anyres")
    columns = {name: len(view["x"]) - 1 for name, view in shown["views"].items()}
    overview = columns["overview"] ** 2
    # Tokens come row by row, a newline behind each row of the tiles.
    indices = [row * columns["overview"] + c for row, c in image["views"]["overview"]]
    indices += [
        overview + row * (columns["tiles"] + 1) + column
        for row, column in image["views"]["tiles"]
    ]
    newlines = [
        int(index)
        for index in kept
        if index >= overview
        and (index - overview) % (columns["tiles"] + 1) == columns["tiles"]
    ]
    assert sorted([*indices, *newlines]) == kept.tolist()
    for name, view in shown["views"].items():
        for edges, side in ((view["x"], 700), (view["y"], 500)):
            # Of the tiles, less than a patch may be cut off.
            margin = 0 if name == "overview" else side / 27
            assert edges == sorted(edges)
            assert edges[0] <= margin and edges[-1] >= side - margin


def test_stages_tell_what_is_left(watched: dict[str, Watched]) -> None:
    seen = watched["pruned twice, later: True"]
    first, second = seen.of("pruned")
    assert (first["step"], second["step"]) == (1, 3)
    assert set(second["positions"]) < set(first["positions"])
    left = [step["visual_tokens"] for step in seen.steps]
    assert left[:2] == [first["kept"]] * 2 and left[2] == second["kept"] == left[-1]


def test_cost_of_an_exact_request(
    watched: dict[str, Watched],
) -> None:
    """Every step of it costs what the others do, but for the head of the model."""
    seen = watched["two pictures: True"]
    spent = [step["flops"] for step in seen.steps]
    parts = seen.end["flops"]
    assert parts.pop("total") == sum(parts.values()) == spent[-1]
    assert parts["vision"] > 0 and parts["scores"] == 0
    costs = np.diff(spent)
    # One row of the head fewer in every step of the block.
    assert (np.diff(costs) < 0).all() and len(set(np.diff(costs))) == 1
    seconds = [step["seconds"] for step in seen.steps]
    assert seconds[0] > 0 and seconds == sorted(seconds)
    assert seen.end["seconds"] >= seconds[-1]


def test_openai_client_meets_the_events(server: ServerProcess) -> None:
    """As a field of chunks that have no choice."""
    with openai_client(server.url) as client:
        stream = client.chat.completions.create(
            model="lladav",
            messages=[{"role": "user", "content": "w1 w2"}],
            max_tokens=4,
            stream=True,
            extra_body={"vllm_xargs": {"live_canvas": 1}},
        )
        chunks = list(stream)
    events = [chunk.to_dict().get("lladav") for chunk in chunks]
    assert all(
        bool(event) != bool(c.choices) for event, c in zip(events, chunks, strict=True)
    )
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize(
    "path, fields",
    [
        ("chat/completions", {}),
        ("chat/completions", {"stream": True, "n": 2, "temperature": 1}),
        ("completions", {"stream": True, "prompt": "w1"}),
        ("responses", {"stream": True, "input": "w1"}),
        ("messages", {"stream": True, "max_tokens": 4}),
    ],
)
def test_who_cannot_watch(
    server: ServerProcess, path: str, fields: dict[str, Any]
) -> None:
    body = small_chat(**fields)
    body["vllm_xargs"]["live_canvas"] = 1
    refused = post(server.url, path, body)
    assert_refused(refused, "live_canvas needs a chat completion with stream: true")


@pytest.mark.parametrize("value", [2, -1, 0.5, "yes", [1]])
def test_values_that_mean_nothing(server: ServerProcess, value: Any) -> None:
    body = small_chat(stream=True)
    body["vllm_xargs"]["live_canvas"] = value
    refused = post(server.url, "chat/completions", body)
    assert_refused(refused, "live_canvas must be an integer of at")


@pytest.mark.parametrize("value, number", [(0, 0), (1, 1), (1.0, 1), (True, 1)])
def test_values_that_mean_something(
    server: ServerProcess, value: Any, number: int
) -> None:
    body = small_chat(stream=True)
    body["vllm_xargs"]["live_canvas"] = value
    assert len(watch(server.url, body).of("end")) == number


def test_refused_for_another_reason(server: ServerProcess) -> None:
    body = small_chat(stream=True)
    body["vllm_xargs"] |= {"live_canvas": 1, "steps": 0}
    assert_refused(post(server.url, "chat/completions", body), "steps must be")


def test_watcher_leaves(server: ServerProcess) -> None:
    """Its request is given up, as any other is, and the next one finds room."""

    def running() -> float:
        metrics = requests.get(f"{server.url}/metrics", timeout=10).text
        lines = [s for s in metrics.splitlines() if s.startswith("vllm:num_requests_r")]
        return sum(float(line.split()[-1]) for line in lines)

    body = small_chat(stream=True, **ENDLESS)
    body["vllm_xargs"] = {**ENDLESS["vllm_xargs"], "live_canvas": 1}
    url = f"{server.url}/v1/chat/completions"
    with closing(requests.post(url, json=body, stream=True, timeout=60)) as response:
        chunks = chunks_of(response)
        names = [next(chunks)["lladav"]["event"] for _ in range(3)]
        assert names == ["start", "step", "step"]
        deadline = time.monotonic() + 20
        while not running() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert running()
    while running() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not running()


def test_deadline_passes_in_sight(server: ServerProcess) -> None:
    """The stream ends with the error that it would end with unseen."""
    body = small_chat(stream=True, **ENDLESS)
    xargs = {"live_canvas": 1, "deadline_seconds": 0.5}
    body["vllm_xargs"] = {**ENDLESS["vllm_xargs"], **xargs}
    url = f"{server.url}/v1/chat/completions"
    with requests.post(url, json=body, stream=True, timeout=60) as response:
        *chunks, last = chunks_of(response)
    assert "deadline_seconds" in last["error"]["message"]
    assert len([chunk for chunk in chunks if "lladav" in chunk]) > 1
