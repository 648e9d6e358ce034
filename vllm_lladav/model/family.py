# SPDX-License-Identifier: Apache-2.0
"""What makes a model family, and what the engine must know of a checkpoint.

A family is a value, :class:`Family`, in a folder beside ``model/lladav/`` that holds
all that is its own: config, weight names, chat template, tower, tokens. Scheduler,
worker and front end know this file only. A new family is a folder and a line in
``model/families.py``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from vllm_lladav.model.shape import ModelShape

if TYPE_CHECKING:
    from vllm.config import ModelConfig


class Traits(NamedTuple):
    """What the engine must know of a checkpoint's tokens.

    The front end asks the family once and keeps the answer with the config, with
    which it reaches every process (:func:`traits_of`). A tuple, because vLLM writes
    the config as JSON. The dtype of confidences, float64 for every family so far,
    belongs here once a family has another.

    Attributes:
        num_tokens: ids below it can be read and predicted.
        mask_token_id: of a canvas position that is not decided.
        end_token_id: ends an answer, unless the request says ``ignore_eos``.
        banned_token_ids: that are never predicted; all below ``num_tokens``.
        image_token_id: stands for an image in the prompt; None without images.
        max_prompt_len: in tokens, images included.
    """

    num_tokens: int
    mask_token_id: int
    end_token_id: int
    banned_token_ids: tuple[int, ...]
    image_token_id: int | None
    max_prompt_len: int


@dataclass(frozen=True)
class Family:
    """All that a family has in store for the engine.

    The config class names the decoder's sizes as Llama's does
    (``num_hidden_layers``, ...): the layers are vLLM's. The values of this class are
    made in every process, ``vllm-lladav --help`` included: what is slow to import is
    imported when a function is called.

    Attributes:
        name: for messages.
        architecture: ``architectures`` in ``config.json``.
        model_class: the vLLM model, ``module:class``, a
            ``MaskedDiffusionLM`` of ``model/decoder.py``.
        aliases: short model names; what each calls returns a directory or hub name.
        register: makes transformers read the config and use the chat template;
            harmless when called again.
        validate: raises ``ValueError``, naming field, value and what is allowed, for
            a config that the model does not compute.
        read_traits: of a checkpoint, from its config and tokenizer.
        check_text: raises ``VLLMValidationError`` for the text of a prompt that
            comes without images and cannot be meant so.
        shape: dimensions, from a config and the rows of the LM head, which vLLM pads.
    """

    name: str
    architecture: str
    model_class: str
    aliases: Mapping[str, Callable[[], str]]
    register: Callable[[], None]
    validate: Callable[[Any], None]
    read_traits: Callable[["ModelConfig"], Traits]
    check_text: Callable[[str], None]
    shape: Callable[[Any, int], ModelShape]


def keep_traits(model_config: "ModelConfig", traits: Traits) -> None:
    """Keep them with the config of the checkpoint."""
    model_config.hf_config.lladav_traits = traits


def traits_of(model_config: "ModelConfig") -> Traits:
    """Of the checkpoint that this process serves."""
    return cast(Traits, model_config.hf_config.lladav_traits)
