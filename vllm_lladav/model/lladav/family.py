# SPDX-License-Identifier: Apache-2.0
"""LLaDA-V, as the engine sees it."""

import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from vllm_lladav.denoising.traits import Traits
from vllm_lladav.model.family import Family
from vllm_lladav.model.lladav.validation import validate_config
from vllm_lladav.model.picture import Picture
from vllm_lladav.model.shape import ModelShape, VisionShape

if TYPE_CHECKING:
    from vllm.config import ModelConfig

    from vllm_lladav.model.lladav.config import LladavConfig

OFFICIAL_CHECKPOINT = "GSAI-ML/LLaDA-V"
MODEL_ENV = "VLLM_LLADAV_MODEL"


def _official() -> str:
    """The directory in ``VLLM_LLADAV_MODEL``, or the checkpoint on the hub."""
    return os.environ.get(MODEL_ENV) or OFFICIAL_CHECKPOINT


def _tiny() -> str:
    """The small trained checkpoint that comes with this package."""
    from vllm_lladav.tiny import TRAINED

    return str(TRAINED)


def _random() -> str:
    """Random weights with the official vocabulary, written to the cache directory on
    first use."""
    from vllm_lladav.tiny import ensure_checkpoint

    return str(ensure_checkpoint())


def _register() -> None:
    from vllm_lladav.model.lladav.config import register_config
    from vllm_lladav.model.lladav.prompt import register_chat_template

    register_config()
    register_chat_template()


def _check_text(text: str) -> None:
    """The multimodal processor, which counts image marks, sees no text-only prompt."""
    from vllm.exceptions import VLLMValidationError

    from vllm_lladav.model.lladav.prompt import IMAGE_MARK

    if IMAGE_MARK in text:
        raise VLLMValidationError(
            f"the prompt has {IMAGE_MARK} but the request has no image",
            parameter="prompt",
        )


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
    if num_tokens >= config.vocab_size:
        raise ValueError(
            f"vocab_size={config.vocab_size} leaves no spare id for image "
            f"placeholders: the tokenizer already has {num_tokens} tokens; allowed: "
            f"vocab_size > {num_tokens}"
        )
    return Traits(
        num_tokens=num_tokens,
        mask_token_id=config.mask_token_id,
        end_token_id=config.eot_token_id,
        banned_token_ids=tuple(i for i in config.banned_token_ids if i < num_tokens),
        # The first id past the tokenizer, which no text can produce. vLLM accepts
        # prompt ids below `vocab_size` (the rows in the checkpoint).
        image_token_id=num_tokens,
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


def model_shape(config: "LladavConfig", vocab_rows: int) -> ModelShape:
    """Of a valid config. ``vocab_rows`` is the engine's: vLLM pads the tokenizer's
    length."""
    vision = config.vision_config
    patch = config.tile_size // config.tile_grid
    return ModelShape(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        vocab_rows=vocab_rows,
        vision=VisionShape(
            hidden_size=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            num_layers=vision.num_hidden_layers - 1,
            tile_tokens=config.tile_grid**2,
            patch_values=3 * patch**2,
            projector_depth=config.projector_depth,
        ),
    )


def _picture(
    config: "LladavConfig", fields: Mapping[str, Sequence[int]]
) -> Picture | None:
    from vllm_lladav.model.lladav.picture import picture_of

    return picture_of(config, fields)


LLADAV = Family(
    name="LLaDA-V",
    architecture="LlavaLLaDAModelLM",
    model_class="vllm_lladav.model.lladav.model:LlavaLLaDAModelLM",
    aliases={"lladav": _official, "lladav-tiny": _tiny, "lladav-random": _random},
    variable=MODEL_ENV,
    register=_register,
    validate=validate_config,
    read_traits=read_traits,
    check_text=_check_text,
    shape=model_shape,
    picture=_picture,
)
