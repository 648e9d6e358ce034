# SPDX-License-Identifier: Apache-2.0
"""The recorded tokens of the official code, over HTTP."""

import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import OpenAI
from openai.types import Completion
from openai.types.chat import ChatCompletion

from tests.golden.cases import GoldenCase
from tests.server.client import EXACT_CASES, TEXT_CASES, chat, complete

NUM_CLIENTS = 8


@pytest.mark.parametrize("name", EXACT_CASES)
def test_chat(client: OpenAI, golden_cases: dict[str, GoldenCase], name: str) -> None:
    """Images as data URLs, denoising parameters in ``vllm_xargs``."""
    case = golden_cases[name]
    answer = chat(client, case)
    _assert_recorded(answer, case)
    assert answer.choices[0].message.content == case.output_text
    assert len(answer.to_dict()["prompt_token_ids"]) == case.prompt_len  # type: ignore[arg-type]


@pytest.mark.parametrize("name", TEXT_CASES)
def test_completion_of_the_prompt_text(
    client: OpenAI, golden_cases: dict[str, GoldenCase], name: str
) -> None:
    """``/v1/completions`` adds nothing to a prompt that has its special tokens."""
    case = golden_cases[name]
    answer = complete(client, case, case.prompt)
    _assert_recorded(answer, case)
    assert answer.choices[0].text == case.output_text
    prompt_token_ids = answer.choices[0].to_dict()["prompt_token_ids"]
    assert prompt_token_ids == list(case.input_ids)


def test_completion_of_token_ids(
    client: OpenAI, golden_cases: dict[str, GoldenCase]
) -> None:
    case = golden_cases["text_32_8_32"]
    _assert_recorded(complete(client, case, list(case.input_ids)), case)


def test_many_at_once(client: OpenAI, golden_cases: dict[str, GoldenCase]) -> None:
    """Requests of all shapes that arrive at any time do not change each other."""
    rng = random.Random(0)
    names = rng.sample(EXACT_CASES, len(EXACT_CASES))
    delays = [rng.uniform(0, 0.5) for _ in names]

    def send(name: str, delay: float) -> ChatCompletion:
        time.sleep(delay)
        return chat(client, golden_cases[name])

    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        answers = list(pool.map(send, names, delays))
    for name, answer in zip(names, answers, strict=True):
        _assert_recorded(answer, golden_cases[name])


def _assert_recorded(answer: ChatCompletion | Completion, case: GoldenCase) -> None:
    """Tokens, usage and the reason for the end."""
    (choice,) = answer.choices
    assert choice.to_dict()["token_ids"] == list(case.output_ids), case.name
    usage = answer.usage
    assert usage is not None
    assert usage.prompt_tokens == case.prompt_len
    assert usage.completion_tokens == len(case.output_ids)
    assert usage.total_tokens == case.prompt_len + len(case.output_ids)
    reason = "stop" if _is_cut_at_stop(case) else "length"
    assert choice.finish_reason == reason, case.name


def _is_cut_at_stop(case: GoldenCase) -> bool:
    return len(case.output_ids) < case.generate.gen_length
