# SPDX-License-Identifier: Apache-2.0
"""What a request means that leaves parameters open, and sampling."""

from typing import Any

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletion

from tests.golden.cases import GoldenCase
from tests.server.client import MODEL, sampling_fields, user_message
from tests.server.metrics import Counted
from tests.server.process import ServerProcess

GEN_LENGTH = 128
"""Of the official demo and of a server without ``--gen-length``."""

EOT = 126_348


def ask(client: OpenAI, text: str = "w1 w2 w3", **fields: Any) -> ChatCompletion:
    return client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": text}], **fields
    )


def num_tokens(answer: ChatCompletion) -> int:
    assert answer.usage is not None
    return answer.usage.completion_tokens


def text_of(answer: ChatCompletion) -> str:
    return answer.choices[0].message.content or ""


def test_plain_request_is_greedy_on_the_default_canvas(
    client: OpenAI, server: ServerProcess
) -> None:
    """Without any parameter: 128 positions, ended by the end of turn or in full."""
    with Counted(server.url) as counted:
        answer = ask(client)
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert 1 <= num_tokens(answer) <= GEN_LENGTH
    steps = counted["lladav:denoising_steps_total"]
    assert 1 <= steps <= GEN_LENGTH
    assert counted["lladav:canvas_positions_total"] == steps * GEN_LENGTH
    assert text_of(ask(client)) == text_of(answer)


def test_whole_default_canvas(client: OpenAI, server: ServerProcess) -> None:
    """``ignore_eos`` gives every position of the canvas, one step each."""
    with Counted(server.url) as counted:
        answer = ask(client, extra_body={"ignore_eos": True})
    assert num_tokens(answer) == GEN_LENGTH
    assert answer.choices[0].finish_reason == "length"
    assert counted["lladav:denoising_steps_total"] == GEN_LENGTH


def test_steps_without_end_are_those_that_do_something(client: OpenAI) -> None:
    """The largest number that is taken is answered like one step per position."""
    answers = [
        ask(client, extra_body={"vllm_xargs": {"gen_length": 8, "steps": steps}})
        for steps in (8, 2**31 - 1)
    ]
    assert text_of(answers[0]) == text_of(answers[1])


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize(
    ("length", "canvas"), [(20, 20), (200, 256)], ids=["one_block", "two_blocks"]
)
def test_max_tokens_is_the_length(
    client: OpenAI, server: ServerProcess, field: str, length: int, canvas: int
) -> None:
    """The canvas is rounded up to whole blocks of 128, the answer is cut."""
    fields: Any = {field: length}
    body = {"ignore_eos": True, "vllm_xargs": {"steps": 10}}
    with Counted(server.url) as counted:
        answer = ask(client, extra_body=body, **fields)
    assert num_tokens(answer) == length
    assert answer.choices[0].finish_reason == "length"
    assert counted["lladav:canvas_positions_total"] == 10 * canvas


def test_max_tokens_is_a_bound(client: OpenAI) -> None:
    """Clients that send one for any model get what there is room for."""
    body = {"ignore_eos": True, "vllm_xargs": {"steps": 8}}
    answer = ask(client, max_tokens=4096, extra_body=body)
    assert num_tokens(answer) == 1024
    assert answer.choices[0].finish_reason == "length"


def test_max_tokens_cuts_a_longer_canvas(client: OpenAI) -> None:
    """``gen_length`` shapes the canvas, ``max_tokens`` what is returned of it."""
    xargs = {"gen_length": 16, "steps": 4}
    body = {"vllm_xargs": xargs, "ignore_eos": True, "return_token_ids": True}
    whole = ask(client, max_tokens=16, extra_body=body)
    cut = ask(client, max_tokens=5, extra_body=body)
    token_ids: Any = whole.choices[0].to_dict()["token_ids"]
    assert cut.choices[0].to_dict()["token_ids"] == token_ids[:5]
    assert cut.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("ending", "stop_reason"),
    [
        ({"stop": "<|eot_id|>"}, "<|eot_id|>"),
        ({"stop_token_ids": [EOT]}, EOT),
        ({"ignore_eos": False}, None),
    ],
    ids=["stop", "stop_token_ids", "end_of_turn"],
)
def test_three_ways_to_end_at_the_end_of_turn(
    client: OpenAI,
    golden_cases: dict[str, GoldenCase],
    ending: dict[str, Any],
    stop_reason: str | int | None,
) -> None:
    """The same answer, text included, and what ended it."""
    case = golden_cases["text_stop"]
    fields = sampling_fields(case)
    assert fields.pop("stop") == ["<|eot_id|>"]
    fields["extra_body"].update(ending)
    fields["messages"] = [user_message(case.messages[0])]
    answer = client.chat.completions.create(**fields)
    choice = answer.choices[0].to_dict()
    assert choice["token_ids"] == list(case.output_ids)
    assert choice["finish_reason"] == "stop"
    assert choice["stop_reason"] == stop_reason
    assert text_of(answer) == case.output_text


def test_greedy_is_indifferent_to_filters(client: OpenAI) -> None:
    """Clients that always send ``top_p`` are served, as vLLM does when greedy."""
    xargs = {"vllm_xargs": {"steps": 2}}
    plain = ask(client, max_tokens=8, extra_body=xargs)
    filtered = ask(client, max_tokens=8, top_p=0.9, temperature=0, extra_body=xargs)
    assert text_of(filtered) == text_of(plain)


def test_seed_makes_choices_reproducible(client: OpenAI) -> None:
    """``n=2``: two different choices, the same ones every time."""
    fields: dict[str, Any] = {
        "max_tokens": 12,
        "temperature": 1.0,
        "extra_body": {"ignore_eos": True},
    }
    first = ask(client, n=2, seed=7, **fields)
    second = ask(client, n=2, seed=7, **fields)
    alone = ask(client, seed=7, **fields)
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1]
    assert texts[0] != texts[1]
    assert [choice.message.content for choice in second.choices] == texts
    assert text_of(alone) == texts[0]
    assert num_tokens(first) == 2 * 12


def test_without_seed_answers_differ(client: OpenAI) -> None:
    fields: dict[str, Any] = {"max_tokens": 12, "temperature": 1.0}
    texts = {text_of(ask(client, **fields)) for _ in range(3)}
    assert len(texts) > 1


def test_random_remasking_follows_the_seed(client: OpenAI) -> None:
    """``remasking: random`` reaches the engine, even at temperature 0."""
    xargs = {"remasking": "random", "steps": 6}
    body = {"vllm_xargs": xargs, "ignore_eos": True}
    texts = [
        text_of(ask(client, max_tokens=24, seed=seed, extra_body=body))
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
