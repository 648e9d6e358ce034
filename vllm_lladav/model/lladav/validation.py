# SPDX-License-Identifier: Apache-2.0
"""A config of LLaDA-V that is not computed as the official code does is refused."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm_lladav.model.lladav.config import LladavConfig


def validate_config(config: "LladavConfig") -> None:
    """Refuse what this package does not compute as the official code does.

    Raises:
        ValueError: naming the parameter, its value and what is allowed.
    """
    _equals(config, "model_type", "llava_llada")
    _check_decoder(config)
    _check_vision(config)
    _check_tiling(config)


def _require(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise ValueError(
            f"LLaDA-V config: {name}={value!r} is not supported; allowed: {allowed}"
        )


def _equals(
    config: "LladavConfig", name: str, *allowed: object, default: object = None
) -> None:
    """``default`` is what a config without the field means."""
    value = getattr(config, name, default)
    _require(value in allowed, name, value, " or ".join(map(repr, allowed)))


def _check_decoder(config: "LladavConfig") -> None:
    _equals(config, "hidden_act", "silu")
    _equals(config, "attention_bias", False)
    _equals(config, "mlp_bias", False, default=False)
    _equals(config, "tie_word_embeddings", False)
    rope = config.rope_parameters
    _require(
        rope.get("rope_type", "default") == "default", "rope_scaling", rope, "null"
    )
    for name in ("hidden_size", "num_attention_heads", "num_hidden_layers"):
        value = getattr(config, name)
        _require(value > 0, name, value, "a positive integer")
    _require(
        config.num_attention_heads % config.num_key_value_heads == 0,
        "num_key_value_heads",
        config.num_key_value_heads,
        f"a divisor of num_attention_heads={config.num_attention_heads}",
    )
    _require(
        0 <= config.mask_token_id < config.vocab_size,
        "mask_token_id",
        config.mask_token_id,
        f"0 to vocab_size-1={config.vocab_size - 1}",
    )


def _check_vision(config: "LladavConfig") -> None:
    vision = config.vision_config
    _equals(config, "mm_vision_select_feature", "patch")
    _equals(config, "mm_vision_select_layer", -2)
    _equals(config, "mm_resampler_type", None, "identity")
    _equals(config, "mm_spatial_pool_stride", None)
    _equals(config, "mm_newline_position", "grid", default="grid")
    _equals(config, "mm_use_im_start_end", False, default=False)
    _equals(config, "mm_use_im_patch_token", False, default=False)
    _equals(config, "mm_patch_merge_type", "spatial_unpad")
    _require(
        config.projector_depth > 0,
        "mm_projector_type",
        config.mm_projector_type,
        "'linear' or 'mlpNx_gelu'",
    )
    _require(
        config.mm_hidden_size == vision.hidden_size,
        "mm_hidden_size",
        config.mm_hidden_size,
        f"the tower's hidden_size={vision.hidden_size}",
    )
    _require(vision.num_channels == 3, "vision num_channels", vision.num_channels, "3")
    _require(
        vision.num_hidden_layers >= 2,
        "vision num_hidden_layers",
        vision.num_hidden_layers,
        "at least 2 (features are taken before the last layer)",
    )


def _check_tiling(config: "LladavConfig") -> None:
    _require(
        config.uses_anyres or config.image_aspect_ratio == "pad",
        "image_aspect_ratio",
        config.image_aspect_ratio,
        "'anyres', 'anyres_max_N' or 'pad'",
    )
    try:
        pinpoints = config.pinpoints
    except (ValueError, SyntaxError, TypeError) as error:
        raise ValueError(
            f"LLaDA-V config: image_grid_pinpoints={config.image_grid_pinpoints!r} "
            f"cannot be read: {error}"
        ) from error
    _require(
        bool(pinpoints)
        and all(s > 0 and s % config.tile_size == 0 for p in pinpoints for s in p),
        "image_grid_pinpoints",
        config.image_grid_pinpoints,
        f"a non-empty list of positive multiples of {config.tile_size}",
    )
