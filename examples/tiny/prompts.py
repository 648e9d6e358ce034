# SPDX-License-Identifier: Apache-2.0
"""The prompt of one question about one picture, as the server builds it."""

from functools import lru_cache

from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from vllm_lladav.model.lladav.prompt import CHAT_TEMPLATE_FILE, IMAGE_MARK
from vllm_lladav.tiny.tokenizer import EOT, STARTOFTEXT


@lru_cache(maxsize=1)
def _template():  # type: ignore[no-untyped-def]
    # As transformers.apply_chat_template compiles it.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(CHAT_TEMPLATE_FILE.read_text(encoding="utf-8"))


def prompt_text(question: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return _template().render(
        messages=[{"role": "user", "content": content}],
        bos_token=STARTOFTEXT,
        add_generation_prompt=True,
    )


@lru_cache(maxsize=1 << 14)
def _encode(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, add_special_tokens=False).ids)


def prompt_ids(tokenizer: Tokenizer, question: str) -> tuple[list[int], list[int]]:
    """Token ids before the picture and behind it.

    The first token behind the picture, a newline, is dropped, as the official code
    does (`vllm_lladav.model.lladav.prompt.encode_with_images`).
    """
    before, behind = prompt_text(question).split(IMAGE_MARK)
    return list(_encode(tokenizer, before)), list(_encode(tokenizer, behind)[1:])


@lru_cache(maxsize=1 << 14)
def _further_turn(question: str) -> str:
    """From behind an answer's <|eot_id|> to where the next answer begins."""
    turns = [("user", ""), ("assistant", IMAGE_MARK), ("user", question)]
    text = _template().render(
        messages=[{"role": role, "content": content} for role, content in turns],
        bos_token=STARTOFTEXT,
        add_generation_prompt=True,
    )
    return text.split(IMAGE_MARK)[1].removeprefix(EOT)


def further_turn_ids(tokenizer: Tokenizer, question: str) -> list[int]:
    """Token ids between two answers."""
    return list(_encode(tokenizer, _further_turn(question)))
