# SPDX-License-Identifier: Apache-2.0
"""What makes a model family.

A family is a value, :class:`Family`, in a folder beside ``model/lladav/`` that holds
all that is its own: config, weight names, chat template, tower, tokens. Scheduler,
worker and front end know this file only. A new family is a folder and a line in
``model/families.py``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm_lladav.denoising.traits import Traits
from vllm_lladav.model.picture import Picture
from vllm_lladav.model.shape import ModelShape

if TYPE_CHECKING:
    from vllm.config import ModelConfig


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
        model_class: the vLLM model, ``module:class``, a ``MaskedDiffusionLM`` of
            ``model/decoder.py``.
        aliases: short model names; what each calls returns a directory or hub name.
        variable: environment variable with the directory that the alias of the
            official checkpoint stands for.
        register: makes transformers read the config and use the chat template;
            harmless when called again.
        validate: raises ``ValueError``, naming field, value and what is allowed, for
            a config that the model does not compute.
        read_traits: of a checkpoint, from its config and tokenizer.
        check_text: raises ``VLLMValidationError`` for the text of a prompt that
            comes without images and cannot be meant so.
        shape: dimensions, from a config and the rows of the LM head, which vLLM pads.
        picture: where the visual tokens of an image look, from a config and the small
            fields of the processed image; None if they do not tell.
    """

    name: str
    architecture: str
    model_class: str
    aliases: Mapping[str, Callable[[], str]]
    variable: str
    register: Callable[[], None]
    validate: Callable[[Any], None]
    read_traits: Callable[["ModelConfig"], Traits]
    check_text: Callable[[str], None]
    shape: Callable[[Any, int], ModelShape]
    picture: Callable[[Any, Mapping[str, Any]], Picture | None]
