# SPDX-License-Identifier: Apache-2.0
"""The official prompt as a chat template, rendered by transformers and by vLLM."""

from pathlib import Path

import jinja2
import pytest
from transformers import AutoProcessor, AutoTokenizer
from vllm.renderers.hf import _detect_content_format

from tests.golden.cases import GoldenCase, load_cases
from vllm_lladav.model.lladav.config import register_config
from vllm_lladav.model.lladav.prompt import (
    LladavProcessor,
    default_chat_template,
    encode_with_images,
    register_chat_template,
)

ASSISTANT = "<|start_header_id|>assistant<|end_header_id|>\n\n"


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Path):
    register_config()
    return AutoTokenizer.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="module")
def render(tokenizer):
    def render(messages, add_generation_prompt=True, **kwargs) -> str:
        return tokenizer.apply_chat_template(
            messages,
            chat_template=default_chat_template(),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **kwargs,
        )

    return render


def user(*parts: object) -> list[dict]:
    """One user turn; an int stands for that many images."""
    content: list[dict] = []
    for part in parts:
        if isinstance(part, int):
            content += [{"type": "image"}] * part
        else:
            content.append({"type": "text", "text": part})
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize("case", load_cases().values(), ids=lambda case: case.name)
def test_prompts_equal_the_official_ones(case: GoldenCase, render, tokenizer):
    messages = [{"role": "user", "content": text} for text in case.messages]
    prompt = render(messages)
    assert prompt == case.prompt
    assert encode_with_images(tokenizer, prompt, -200) == list(case.input_ids)


def test_images_stand_before_the_text(render):
    def text_of(messages) -> str:
        return render(messages).split("<|end_header_id|>\n\n")[2].split("<|eot_id|>")[0]

    assert text_of(user(1, "What?")) == "<image>\nWhat?"
    assert text_of(user("What?", 1)) == "<image>\nWhat?"
    assert text_of(user(2, "Compare.", "Now.")) == "<image> <image>\nCompare.\nNow."
    assert text_of(user(1, "See <image> here")) == "See <image> here"
    assert text_of(user(1)) == "<image>"
    assert text_of(user("  Trimmed. ")) == "Trimmed."


def test_system_message_of_the_conversation_wins(render):
    prompt = render([{"role": "system", "content": "Be brief."}, *user("Hi")])
    assert "helpful language and vision assistant" not in prompt
    assert prompt == (
        "<|startoftext|>"
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>" + ASSISTANT
    )


def test_generation_prompt_is_optional(render):
    turns = [*user("Hi"), {"role": "assistant", "content": "Hello."}, *user("Bye")]
    with_prompt, without = render(turns), render(turns, add_generation_prompt=False)
    assert with_prompt == without + ASSISTANT
    assert without.count(ASSISTANT) == 1
    assert without.endswith("Bye<|eot_id|>")


def test_unfinished_answer_can_be_continued(render):
    turns = [*user("Hi"), {"role": "assistant", "content": "Hello, I"}]
    prompt = render(turns, add_generation_prompt=False, continue_final_message=True)
    assert prompt.endswith(ASSISTANT + "Hello, I")


@pytest.mark.parametrize(
    ("messages", "kwargs", "error"),
    [
        ([{"role": "tool", "content": "42"}], {}, 'role "tool"'),
        (user("Hi"), {"tools": [{"type": "function"}]}, "does not support tools"),
        (
            [{"role": "assistant", "content": "", "tool_calls": [{}]}],
            {},
            "does not support tool calls",
        ),
        (
            [{"role": "user", "content": [{"type": "video"}]}],
            {},
            'content of type "video"',
        ),
        (
            [{"role": "assistant", "content": [{"type": "image"}]}],
            {},
            "user messages only",
        ),
    ],
)
def test_what_the_model_cannot_do_is_refused(render, messages, kwargs, error):
    with pytest.raises(jinja2.TemplateError, match=error):
        render(messages, **kwargs)


def test_vllm_passes_content_parts():
    assert _detect_content_format(default_chat_template(), default="string") == "openai"


def test_processor_carries_the_template(tiny_checkpoint: Path):
    register_config()
    register_chat_template()
    register_chat_template()  # idempotent
    processor = AutoProcessor.from_pretrained(tiny_checkpoint)
    assert isinstance(processor, LladavProcessor)
    assert processor.chat_template == default_chat_template()
