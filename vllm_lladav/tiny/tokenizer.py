# SPDX-License-Identifier: Apache-2.0
"""A byte-level BPE tokenizer with LLaDA's special tokens and vocabulary size.

Encoding knows the 256 bytes and the merges of a short word list. All other ids have
readable names for decoding (``" w1234"``) but are never produced from text.
"""

from typing import Any

from vllm_lladav.tiny.presets import MASK_ID, NUM_ORDINARY_TOKENS, NUM_TOKENS

STARTOFTEXT = "<|startoftext|>"
ENDOFTEXT = "<|endoftext|>"
CLS, GMASK = "[CLS]", "[gMASK]"
MASK = "<|mdm_mask|>"
START_HEADER = "<|start_header_id|>"
END_HEADER = "<|end_header_id|>"
EOT = "<|eot_id|>"

_ROLE_AND_NUMBER_TOKENS = (
    "<role>",
    "</role>",
    "<|arithmetic_start|>",
    "<|arithmetic_end|>",
    "<|number_start|>",
    "<|number_end|>",
)

# The merges depend on the order of the words.
_WORDS = (
    "the a of and to in is what describe this image picture please detail count "
    "colour color shape left right top bottom red green blue square circle stripe "
    "how many are there which you your answer question user assistant system helpful "
    "language vision able understand visual content that provides assist with variety "
    "tasks using natural first second between compare difference explain one two "
    "three yes no not it on at for"
)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' ~ m['role'] ~ "
    "'<|end_header_id|>\n\n' ~ (m['content'] | trim) ~ '<|eot_id|>' }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)


def byte_characters() -> list[str]:
    """The printable character that stands for each byte in byte-level BPE."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    stand_ins = {byte: chr(0x100 + index) for index, byte in enumerate(others)}
    return [stand_ins.get(byte, chr(byte)) for byte in range(256)]


def ordinary_tokens() -> tuple[list[str], list[str]]:
    """Return the byte-pair vocabulary in id order, and its merges in rank order."""
    characters = byte_characters()
    tokens = dict.fromkeys(characters)  # As a set that keeps its order.
    merges = []
    for form in (form for word in _WORDS.split() for form in (word, f" {word}")):
        prefix, *rest = (characters[byte] for byte in form.encode())
        for character in rest:
            merged = prefix + character
            if merged not in tokens:
                tokens[merged] = None
                merges.append(f"{prefix} {character}")
            prefix = merged
    space = characters[ord(" ")]
    unused = (f"{space}w{id_}" for id_ in range(len(tokens), NUM_ORDINARY_TOKENS))
    return [*tokens, *unused], merges


def special_tokens() -> dict[int, str]:
    """Return the special tokens by id, in id order."""
    names = (
        *(STARTOFTEXT, ENDOFTEXT, CLS, GMASK),
        *(f"<|reserved_token_{index}|>" for index in range(256)),
        *_ROLE_AND_NUMBER_TOKENS,
        *(START_HEADER, END_HEADER, EOT),
    )
    tokens = dict(zip(range(NUM_ORDINARY_TOKENS, NUM_TOKENS), names, strict=True))
    tokens[MASK_ID] = MASK  # Takes the place of a reserved token.
    return tokens


def tokenizer_json() -> dict[str, Any]:
    """The content of ``tokenizer.json``."""
    tokens, merges = ordinary_tokens()
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id_, **_added_token(name)} for id_, name in special_tokens().items()
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": _byte_level(add_prefix_space=False, trim_offsets=True),
        "post_processor": _byte_level(add_prefix_space=True, trim_offsets=False),
        "decoder": _byte_level(add_prefix_space=True, trim_offsets=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: id_ for id_, token in enumerate(tokens)},
            "merges": merges,
        },
    }


def tokenizer_config() -> dict[str, Any]:
    """The content of ``tokenizer_config.json``."""
    return {
        "add_bos_token": False,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(id_): _added_token(name) for id_, name in special_tokens().items()
        },
        "additional_special_tokens": [MASK, *_ROLE_AND_NUMBER_TOKENS],
        "bos_token": STARTOFTEXT,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "cls_token": CLS,
        "eos_token": ENDOFTEXT,
        "fast_tokenizer": True,
        "gmask_token": GMASK,
        "merges_file": None,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": int(1e30),  # The value that transformers writes for "none".
        "pad_token": ENDOFTEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "trust_remote_code": True,
        "vocab_file": None,
    }


def special_tokens_map() -> dict[str, Any]:
    """The content of ``special_tokens_map.json``."""
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {
        "additional_special_tokens": [MASK, *_ROLE_AND_NUMBER_TOKENS],
        "bos_token": {"content": STARTOFTEXT, **flags},
        "cls_token": {"content": CLS, **flags},
        "eos_token": {"content": ENDOFTEXT, **flags},
        "pad_token": {"content": ENDOFTEXT, **flags},
    }


def _byte_level(*, add_prefix_space: bool, trim_offsets: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": trim_offsets,
        "use_regex": True,
    }


def _added_token(name: str) -> dict[str, Any]:
    return {
        "content": name,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
