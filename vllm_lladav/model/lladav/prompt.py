# SPDX-License-Identifier: Apache-2.0
"""The prompt: its default chat template, and images inside token ids."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoProcessor, ProcessorMixin

from vllm_lladav.model.lladav.config import LladavConfig

if TYPE_CHECKING:
    from vllm.tokenizers import TokenizerLike

IMAGE_MARK = "<image>"
CHAT_TEMPLATE_FILE = Path(__file__).with_name("chat_template.jinja")


def encode_with_images(
    tokenizer: "TokenizerLike",
    text: str,
    image_token_id: int,
    keep_token_after_image: bool = False,
) -> list[int]:
    """Token ids of a text, one ``image_token_id`` per ``<image>``.

    The pieces between the marks are encoded on their own, as the official code
    does. That code also drops the first token after every mark when the prompt
    starts with <bos>, which it takes for a second <bos>. The released model was
    evaluated that way, so it is the default here.
    """
    first, *rest = (
        tokenizer.encode(piece, add_special_tokens=False)
        for piece in text.split(IMAGE_MARK)
    )
    starts_with_bos = bool(first) and first[0] == tokenizer.bos_token_id
    skip = 1 if starts_with_bos and not keep_token_after_image else 0
    ids = list(first)
    for piece in rest:
        ids += [image_token_id, *piece[skip:]]
    return ids


def place_images(
    tokenizer: "TokenizerLike",
    ids: Sequence[int],
    image_token_id: int,
    keep_token_after_image: bool = False,
) -> list[int]:
    """The same for a prompt that vLLM has tokenised already.

    Ids that hold ``image_token_id`` were placed by the client and stay as they
    are. Otherwise the text is recovered (byte-level BPE loses nothing) and
    encoded again, because ``<image>`` may have been merged with its neighbours.
    """
    if image_token_id in ids:
        return list(ids)
    text = tokenizer.decode(list(ids), skip_special_tokens=False)
    return encode_with_images(tokenizer, text, image_token_id, keep_token_after_image)


@lru_cache(maxsize=1)
def default_chat_template() -> str:
    return CHAT_TEMPLATE_FILE.read_text(encoding="utf-8")


class LladavProcessor(ProcessorMixin):
    """Carries the official chat template to where vLLM and transformers look.

    vLLM prefers a processor's template to the tokenizer's, whose template in the
    checkpoint has no system message. Images are processed by
    `vllm_lladav.model.lladav.processing`, not here.
    """

    def __init__(self, tokenizer: Any = None, chat_template: str | None = None) -> None:
        # A template file next to the tokenizer arrives here too, and loses.
        super().__init__(tokenizer, chat_template=default_chat_template())


def register_chat_template() -> None:
    """Make the official prompt the default of chat requests.

    Idempotent. An explicit ``--chat-template`` still comes first.
    """
    AutoProcessor.register(LladavConfig, LladavProcessor, exist_ok=True)
