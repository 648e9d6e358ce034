# SPDX-License-Identifier: Apache-2.0
"""What the engine is told of the checkpoint's tokens."""

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.config import ModelConfig

from vllm_lladav.denoising.traits import Traits, keep_traits, traits_of
from vllm_lladav.model.lladav.config import LladavConfig
from vllm_lladav.model.lladav.family import read_traits


def model_config(tiny_checkpoint: Path, **changes: Any) -> Any:
    """As much of vLLM's as is read."""
    config = LladavConfig.from_pretrained(tiny_checkpoint)
    for name, value in changes.items():
        setattr(config, name, value)
    return SimpleNamespace(
        hf_config=config,
        tokenizer=str(tiny_checkpoint),
        tokenizer_revision=None,
        trust_remote_code=False,
    )


def test_official_values(tiny_checkpoint: Path):
    """The first id past the tokenizer stands for images."""
    found = read_traits(model_config(tiny_checkpoint))
    assert found == Traits(
        num_tokens=126349,
        mask_token_id=126336,
        end_token_id=126348,
        banned_token_ids=(126081, 126080, 126346, 126347),
        image_token_id=126349,
        max_prompt_len=8192,
    )


def test_an_image_needs_a_spare_id(tiny_checkpoint: Path):
    with pytest.raises(ValueError, match="vocab_size=126349 leaves no spare id"):
        read_traits(model_config(tiny_checkpoint, vocab_size=126349))


def test_only_ids_of_the_tokenizer_are_banned(tiny_checkpoint: Path):
    changed = model_config(tiny_checkpoint, banned_token_ids=[5, 126349, 126463])
    assert read_traits(changed).banned_token_ids == (5,)


def test_prompts_are_as_long_as_the_model_without_a_limit(tiny_checkpoint: Path):
    changed = model_config(
        tiny_checkpoint, tokenizer_model_max_length=None, max_position_embeddings=99
    )
    assert read_traits(changed).max_prompt_len == 99


def test_traits_travel_with_the_config(tiny_checkpoint: Path):
    """Pickled to other processes; vLLM also writes the config as JSON."""
    served = model_config(tiny_checkpoint)
    traits = read_traits(served)
    keep_traits(served, traits)
    assert traits_of(pickle.loads(pickle.dumps(served))) == traits
    assert "lladav_traits" in served.hf_config.to_json_string()


def test_annotations_of_vllm_still_match():
    """`read_traits` reads these."""
    names = {"tokenizer", "tokenizer_revision", "trust_remote_code"}
    assert names <= set(ModelConfig.__dataclass_fields__)
