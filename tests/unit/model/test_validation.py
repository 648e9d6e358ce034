# SPDX-License-Identifier: Apache-2.0
"""What is not computed as in the official code is refused, by name."""

import pytest

from vllm_lladav.model.lladav.config import LladavConfig
from vllm_lladav.model.lladav.validation import validate_config


@pytest.fixture(scope="module")
def config() -> LladavConfig:
    """That of the released checkpoint."""
    return LladavConfig()


def changed(config: LladavConfig, **changes: object) -> LladavConfig:
    return LladavConfig(**{**config.to_dict(), **changes})


def test_the_released_config_is_valid(config: LladavConfig):
    validate_config(config)
    validate_config(changed(config))


def test_a_config_of_another_model_is_refused(config: LladavConfig):
    other = changed(config)
    other.model_type = "llama"
    with pytest.raises(ValueError, match="model_type='llama'"):
        validate_config(other)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("tie_word_embeddings", True),
        ("rope_parameters", {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
        ("num_key_value_heads", 3),
        ("mask_token_id", 126464),
        ("mm_vision_select_feature", "cls_patch"),
        ("mm_vision_select_layer", -1),
        ("mm_resampler_type", "qformer"),
        ("mm_patch_merge_type", "flat"),
        ("mm_newline_position", "one_token"),
        ("mm_use_im_start_end", True),
        ("mm_projector_type", "mlp2x_res2x_gelu"),
        ("image_aspect_ratio", "highres"),
        ("image_aspect_ratio", "anyres_max_0"),
        ("image_grid_pinpoints", []),
        ("image_grid_pinpoints", [[384, 400]]),
        ("image_grid_pinpoints", "(a)"),
        ("mm_hidden_size", 65),
    ],
)
def test_unsupported_values_are_named(config: LladavConfig, name: str, value: object):
    with pytest.raises(ValueError) as error:
        validate_config(changed(config, **{name: value}))
    shown = "rope_scaling" if name == "rope_parameters" else name
    assert f"{shown}={value!r}" in str(error.value)


def test_rope_scaling_of_the_file_is_refused(config: LladavConfig):
    fields = config.to_dict()
    del fields["rope_parameters"]
    scaled = LladavConfig(**fields, rope_scaling={"rope_type": "linear", "factor": 2.0})
    with pytest.raises(ValueError, match="rope_scaling=.*'linear'.*allowed: null"):
        validate_config(scaled)
