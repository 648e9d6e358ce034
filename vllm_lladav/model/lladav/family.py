# SPDX-License-Identifier: Apache-2.0
"""LLaDA-V, as the engine sees it."""

import os

from vllm_lladav.model.family import Family
from vllm_lladav.model.lladav.shape import model_shape
from vllm_lladav.model.lladav.traits import read_traits
from vllm_lladav.model.lladav.validation import validate_config

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


LLADAV = Family(
    name="LLaDA-V",
    architecture="LlavaLLaDAModelLM",
    model_class="vllm_lladav.model.lladav.model:LlavaLLaDAModelLM",
    aliases={"lladav": _official, "lladav-tiny": _tiny, "lladav-random": _random},
    register=_register,
    validate=validate_config,
    read_traits=read_traits,
    check_text=_check_text,
    shape=model_shape,
)
