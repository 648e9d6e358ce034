# SPDX-License-Identifier: Apache-2.0
"""``logprobs`` in OpenAI's formats: what each token had when it was unmasked."""

import math

import pytest
from openai import OpenAI

from tests.golden.cases import GoldenCase
from tests.server.client import chat_fields, complete, sampling_fields

NAME = "text_32_8_32"


@pytest.fixture
def confidence(golden_cases: dict[str, GoldenCase]) -> list[float]:
    """Of every canvas position when the official code unmasked it."""
    values: dict[int, float] = {}
    for step in golden_cases[NAME].steps:
        values |= dict(zip(step.positions, step.confidence, strict=True))
    return [values[position] for position in range(len(values))]


@pytest.mark.parametrize("stream", [False, True])
def test_chat(
    client: OpenAI,
    golden_cases: dict[str, GoldenCase],
    confidence: list[float],
    stream: bool,
) -> None:
    fields = chat_fields(golden_cases[NAME]) | {"logprobs": True, "top_logprobs": 2}
    answer = client.chat.completions.create(stream=stream, **fields)
    content = []
    for chunk in answer if stream else [answer]:
        for choice in chunk.choices:
            if choice.logprobs is not None:
                content += choice.logprobs.content
    assert [math.exp(token.logprob) for token in content] == pytest.approx(
        confidence, rel=1e-3
    )
    for token in content:
        assert len(token.top_logprobs) == 2
        assert token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob
        assert token.token == token.top_logprobs[0].token


def test_completion(
    client: OpenAI, golden_cases: dict[str, GoldenCase], confidence: list[float]
) -> None:
    case = golden_cases[NAME]
    fields = sampling_fields(case) | {"logprobs": 1}
    answer = client.completions.create(prompt=case.prompt, **fields)
    assert answer.choices[0].text == complete(client, case, case.prompt).choices[0].text
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.token_logprobs is not None
    assert [math.exp(value) for value in logprobs.token_logprobs] == pytest.approx(
        confidence, rel=1e-3
    )
