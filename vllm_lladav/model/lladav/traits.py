# SPDX-License-Identifier: Apache-2.0
"""What config and tokenizer say of LLaDA-V's tokens."""

from functools import lru_cache
from typing import TYPE_CHECKING

from vllm_lladav.denoising.traits import Traits

if TYPE_CHECKING:
    from vllm.config import ModelConfig


def read_traits(model_config: "ModelConfig") -> Traits:
    """Of a checkpoint with a valid config.

    The official loader shrinks the embedding and the head to the tokenizer's length
    (126,464 rows in the file, 126,349 with the official tokenizer).

    Raises:
        ValueError: if no id is left for images.
    """
    config = model_config.hf_config
    num_tokens = _tokenizer_length(
        model_config.tokenizer,
        model_config.tokenizer_revision,
        model_config.trust_remote_code,
    )
    return Traits(
        num_tokens=num_tokens,
        mask_token_id=config.mask_token_id,
        end_token_id=config.eot_token_id,
        banned_token_ids=tuple(i for i in config.banned_token_ids if i < num_tokens),
        image_token_id=_image_token_id(num_tokens, config.vocab_size),
        max_prompt_len=(
            config.tokenizer_model_max_length or config.max_position_embeddings
        ),
    )


@lru_cache(maxsize=8)
def _tokenizer_length(name: str, revision: str | None, trust_remote_code: bool) -> int:
    from vllm.tokenizers import get_tokenizer

    tokenizer = get_tokenizer(
        name, revision=revision, trust_remote_code=trust_remote_code
    )
    return len(tokenizer)


def _image_token_id(num_tokens: int, vocab_size: int) -> int:
    """Placeholder id of an image: the first id past the tokenizer.

    No text can produce it. vLLM accepts prompt ids below ``vocab_size`` (the
    rows in the checkpoint), so one spare row must exist.
    """
    if num_tokens >= vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size} leaves no spare id for image placeholders: "
            f"the tokenizer already has {num_tokens} tokens; allowed: "
            f"vocab_size > {num_tokens}"
        )
    return num_tokens
