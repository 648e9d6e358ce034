# SPDX-License-Identifier: Apache-2.0
"""A small byte-level tokenizer whose words are those of the pictures' questions.

Every word is one token, with and without a space before it. Special tokens are
LLaDA's, behind the ordinary ones. The default system prompt, the same in every
request, is one token too: that shortens the sequences by a quarter. Other texts, other
system prompts among them, come out in more tokens, byte by byte at worst.
"""

import json
import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from examples.tiny import pictures
from vllm_lladav.model.lladav.prompt import CHAT_TEMPLATE_FILE
from vllm_lladav.tiny import tokenizer as random_tokenizer
from vllm_lladav.tiny.tokenizer import (
    CLS,
    END_HEADER,
    ENDOFTEXT,
    EOT,
    GMASK,
    MASK,
    START_HEADER,
    STARTOFTEXT,
)

_WORDS = (
    "system user assistant image a at in is the there that which what where how many "
    "yes no and of are things colour color shape letter digit letters digits describe "
    "picture please detail read Which What Where How Is Describe Please Read answer "
    "question not it on to for with you shapes word"
)
SPECIALS = (
    *(STARTOFTEXT, ENDOFTEXT, CLS, GMASK, MASK),
    *(START_HEADER, END_HEADER, EOT),
)


def system_prompt() -> str:
    """The default system prompt of the chat template."""
    text = CHAT_TEMPLATE_FILE.read_text(encoding="utf-8")
    found = re.search(r"set default_system = '([^']*)'", text)
    assert found, CHAT_TEMPLATE_FILE
    return found[1]


def ordinary_tokens() -> list[str]:
    """The byte-pair vocabulary in id order: the bytes, then whole words."""
    characters = random_tokenizer.byte_characters()
    words = [
        *_WORDS.split(),
        *pictures.COLOURS,
        *pictures.SHAPES,
        *pictures.LETTERS,
        *"0123456789",
        *pictures.ROWS,
        *pictures.COLUMNS,
    ]
    forms = [*(form for word in words for form in (word, f" {word}")), "\n\n"]
    whole = ("".join(characters[byte] for byte in form.encode()) for form in forms)
    return list(dict.fromkeys([*characters, *whole]))


def added_tokens() -> dict[int, str]:
    """The tokens behind the ordinary ones, by id; the system prompt comes first."""
    first = len(ordinary_tokens())
    return dict(enumerate((system_prompt(), *SPECIALS), start=first))


def special_ids() -> dict[str, int]:
    return {name: id_ for id_, name in added_tokens().items() if name in SPECIALS}


def tokenizer_json() -> dict[str, Any]:
    """``tokenizer.json``."""
    content = random_tokenizer.tokenizer_json()
    content["model"] |= {
        "vocab": {token: id_ for id_, token in enumerate(ordinary_tokens())},
        "merges": [],
        "ignore_merges": True,  # Words are looked up whole.
    }
    content["added_tokens"] = [
        {"id": id_, **_added_token(name)} for id_, name in added_tokens().items()
    ]
    return content


def tokenizer_config() -> dict[str, Any]:
    """``tokenizer_config.json``."""
    return {
        **random_tokenizer.tokenizer_config(),
        "added_tokens_decoder": {
            str(id_): _added_token(name) for id_, name in added_tokens().items()
        },
        "additional_special_tokens": [MASK],
    }


def special_tokens_map() -> dict[str, Any]:
    """``special_tokens_map.json``."""
    return {
        **random_tokenizer.special_tokens_map(),
        "additional_special_tokens": [MASK],
    }


def load() -> Tokenizer:
    return Tokenizer.from_str(json.dumps(tokenizer_json()))


def word_id(encoder: Tokenizer, word: object) -> int:
    """The id of a word with a space before it."""
    (found,) = encoder.encode(f" {word}", add_special_tokens=False).ids
    return int(found)


def write(directory: Path) -> None:
    """Write the three files of the tokenizer."""
    for name, content in (
        ("tokenizer.json", tokenizer_json()),
        ("tokenizer_config.json", tokenizer_config()),
        ("special_tokens_map.json", special_tokens_map()),
    ):
        text = json.dumps(content, ensure_ascii=False, indent=1)
        (directory / name).write_text(text + "\n", encoding="utf-8")


def _added_token(name: str) -> dict[str, Any]:
    return {
        "content": name,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": name in SPECIALS,
    }
