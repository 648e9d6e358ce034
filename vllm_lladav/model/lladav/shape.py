# SPDX-License-Identifier: Apache-2.0
"""The dimensions of an LLaDA-V checkpoint."""

from typing import TYPE_CHECKING

from vllm_lladav.model.shape import ModelShape, VisionShape

if TYPE_CHECKING:
    from vllm_lladav.model.lladav.config import LladavConfig


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
