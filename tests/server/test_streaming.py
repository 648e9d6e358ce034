# SPDX-License-Identifier: Apache-2.0
"""``stream=True``: the same answer in pieces."""

from dataclasses import dataclass, field

import pytest
from openai import OpenAI
from openai.types import CompletionUsage

from tests.golden.cases import GoldenCase
from tests.server.client import chat, chat_fields, sampling_fields


@dataclass
class Streamed:
    """A streamed answer, put together.

    Attributes:
        num_deltas: chunks that brought tokens.
        usages: of the chunks that had one.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    num_deltas: int = 0
    finish_reasons: list[str] = field(default_factory=list)
    usages: list[CompletionUsage] = field(default_factory=list)


def stream_chat(client: OpenAI, case: GoldenCase) -> Streamed:
    streamed = Streamed()
    chunks = client.chat.completions.create(
        stream=True, stream_options={"include_usage": True}, **chat_fields(case)
    )
    for chunk in chunks:
        if chunk.usage is not None:
            assert not chunk.choices, "usage comes in a chunk of its own"
            streamed.usages.append(chunk.usage)
            continue
        assert not streamed.usages, "usage comes last"
        (choice,) = chunk.choices
        streamed.text += choice.delta.content or ""
        token_ids = choice.to_dict().get("token_ids") or []
        streamed.token_ids += token_ids  # type: ignore[arg-type]
        streamed.num_deltas += bool(token_ids)
        if choice.finish_reason is not None:
            streamed.finish_reasons.append(choice.finish_reason)
    return streamed


@pytest.mark.parametrize(
    "name",
    [
        "text_32_32_32",
        "text_32_8_32",
        "text_stop",
        "text_stop_blocks",
        "text_stop_first",
        "text_suffix",
        "text_suffix_stop",
        "text_mask_in_prompt",
        "img_small_2",
        "img_two_pad_stacked",
    ],
)
def test_streamed_answer_is_the_whole_answer(
    client: OpenAI, golden_cases: dict[str, GoldenCase], name: str
) -> None:
    """Text, tokens, finish reason and usage, with and without streaming."""
    case = golden_cases[name]
    whole = chat(client, case)
    streamed = stream_chat(client, case)
    assert streamed.token_ids == list(case.output_ids)
    assert streamed.text == case.output_text
    assert streamed.text == whole.choices[0].message.content
    assert streamed.finish_reasons == [whole.choices[0].finish_reason]
    (usage,) = streamed.usages
    assert usage == whole.usage


def test_blocks_arrive_as_they_are_done(
    client: OpenAI, golden_cases: dict[str, GoldenCase]
) -> None:
    """The client sees the first blocks before the last one is finished."""
    case = golden_cases["text_32_8_32"]
    num_blocks = case.generate.gen_length // case.generate.block_length
    assert stream_chat(client, case).num_deltas >= num_blocks


def test_stop_ends_a_stream(
    client: OpenAI, golden_cases: dict[str, GoldenCase]
) -> None:
    """Nothing after the stop is sent, although later blocks would follow."""
    case = golden_cases["text_stop_blocks"]
    streamed = stream_chat(client, case)
    assert streamed.finish_reasons == ["stop"]
    assert streamed.usages[0].completion_tokens == len(case.output_ids)


def test_streamed_completion(
    client: OpenAI, golden_cases: dict[str, GoldenCase]
) -> None:
    case = golden_cases["text_32_8_32"]
    chunks = list(
        client.completions.create(
            prompt=case.prompt, stream=True, **sampling_fields(case)
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == case.output_text
    assert chunks[-1].choices[0].finish_reason == "length"
