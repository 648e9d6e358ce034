# SPDX-License-Identifier: Apache-2.0
"""What the engine must know of a checkpoint's tokens."""

from typing import Any, NamedTuple, cast


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


def keep_traits(model_config: Any, traits: Traits) -> None:
    """Keep them with the config of the checkpoint (vLLM's ``ModelConfig``)."""
    model_config.hf_config.lladav_traits = traits


def traits_of(model_config: Any) -> Traits:
    """Of the checkpoint that this process serves (vLLM's ``ModelConfig``)."""
    return cast(Traits, model_config.hf_config.lladav_traits)
