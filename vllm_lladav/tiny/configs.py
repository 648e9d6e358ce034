# SPDX-License-Identifier: Apache-2.0
"""The JSON configuration files of a checkpoint, as dictionaries."""

from typing import Any

from vllm_lladav.tiny.presets import (
    ENDOFTEXT_ID,
    PATCH_SIZE,
    STARTOFTEXT_ID,
    TILE_SIZE,
    VOCAB_ROWS,
    ModelSize,
)

VISION_TOWER_DIRECTORY = "siglip-tiny-patch14-384"

# Keys that concern training, video input or other members of the LLaVA family.
_OTHER = {
    "add_faster_video": False,
    "add_time_instruction": False,
    "faster_token_stride": 10,
    "force_sample": False,
    "image_crop_resolution": None,
    "image_split_resolution": None,
    "initializer_range": 0.02,
    "mm_projector_lr": None,
    "mm_resampler_type": None,
    "mm_spatial_pool_mode": "bilinear",
    "mm_spatial_pool_stride": None,
    "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
    "mm_vision_tower_lr": 2e-06,
    "pos_skipping_range": 4096,
    "pretraining_tp": 1,
    "use_cache": False,
    "use_pos_skipping": False,
    "vision_tower_pretrained": None,
}


def model_config(size: ModelSize, torch_dtype: str) -> dict[str, Any]:
    """The content of ``config.json``, with the keys of the official checkpoint."""
    decoder = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 128000,  # Unlike the tokenizer's, which prompts start with.
        "eos_token_id": ENDOFTEXT_ID,
        "hidden_act": "silu",
        "hidden_size": size.hidden_size,
        "intermediate_size": size.intermediate_size,
        "max_position_embeddings": 16384,
        "num_attention_heads": size.num_heads,
        "num_hidden_layers": size.num_layers,
        "num_key_value_heads": size.num_heads,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "tokenizer_model_max_length": 8192,
        "tokenizer_padding_side": "right",
        "torch_dtype": torch_dtype,
        "vocab_size": VOCAB_ROWS,
    }
    vision = {
        "image_aspect_ratio": "anyres_max_4",
        "image_grid_pinpoints": [
            [TILE_SIZE * first, TILE_SIZE * second]
            for first in range(1, 7)
            for second in range(1, 7)
        ],
        "mm_hidden_size": size.vision_hidden_size,
        "mm_newline_position": "grid",
        "mm_patch_merge_type": "spatial_unpad",
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": VISION_TOWER_DIRECTORY,
        "use_mm_proj": True,
    }
    return {
        "architectures": ["LlavaLLaDAModelLM"],
        "model_type": "llava_llada",
        **dict(sorted({**decoder, **vision, **_OTHER}.items())),
    }


def generation_config() -> dict[str, Any]:
    """The content of ``generation_config.json``."""
    return {
        "_from_model_config": True,
        "bos_token_id": STARTOFTEXT_ID,
        "eos_token_id": ENDOFTEXT_ID,
    }


def vision_config(size: ModelSize) -> dict[str, Any]:
    """The content of ``config.json`` of the SigLIP model that ``mm_vision_tower``
    names."""
    return {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": size.vision_hidden_size,
            "intermediate_size": size.vision_intermediate_size,
            "num_hidden_layers": size.vision_num_layers,
            "num_attention_heads": size.vision_num_heads,
            "num_channels": 3,
            "image_size": TILE_SIZE,
            "patch_size": PATCH_SIZE,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-06,
            "attention_dropout": 0.0,
        },
    }
