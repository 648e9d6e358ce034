# SPDX-License-Identifier: Apache-2.0
"""Names, shapes and distributions of the weights, and how they are drawn.

A tensor is a function of the seed and its name. Its values come from integer
arithmetic on the raw output of a bit generator, so they do not depend on the machine,
its maths library or the version of numpy. All of them lie on the bfloat16 grid: a
bfloat16 and a float32 checkpoint hold the same numbers.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vllm_lladav.tiny.presets import (
    END_HEADER_ID,
    ENDOFTEXT_ID,
    EOT_ID,
    NUM_TOKENS,
    PATCH_SIZE,
    PATCHES_PER_TILE,
    START_HEADER_ID,
    STARTOFTEXT_ID,
    VOCAB_ROWS,
    ModelSize,
)

Float32Array = npt.NDArray[np.float32]

DEFAULT_HEAD_GAINS: Mapping[int, float] = {
    EOT_ID: 2.1,
    **dict.fromkeys(
        (ENDOFTEXT_ID, STARTOFTEXT_ID, START_HEADER_ID, END_HEADER_ID), 2.5
    ),
    **dict.fromkeys(range(NUM_TOKENS, VOCAB_ROWS), 1.6),
}
"""Rows of ``lm_head`` made louder: the stop token, the ids that may not be predicted,
and the rows past the tokenizer. Code that treats one of them wrongly then gives other
tokens than the official code."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and distribution of a tensor: bell-shaped values around ``mean``."""

    name: str
    shape: tuple[int, ...]
    std: float
    mean: float = 0.0
    row_gains: npt.NDArray[np.float64] | None = None  # [shape[0]]


def draw(spec: TensorSpec, seed: str) -> Float32Array:
    """Draw a tensor: sums of four uniform 16-bit integers, scaled to ``spec``."""
    digest = hashlib.sha256(f"{seed}\0{spec.name}".encode()).digest()
    generator = np.random.PCG64(int.from_bytes(digest[:16], "little"))
    uniform = generator.random_raw(math.prod(spec.shape)).view(np.uint16).reshape(-1, 4)
    centred = uniform.sum(axis=1, dtype=np.int32) - 2 * 0xFFFF
    centred_std = math.sqrt(4 * (0x10000**2 - 1) / 12)
    values = centred * (spec.std / centred_std) + spec.mean
    values = values.reshape(spec.shape)
    if spec.row_gains is not None:
        values *= spec.row_gains[:, None]
    return round_to_bfloat16(values.astype(np.float32))


def round_to_bfloat16(values: Float32Array) -> Float32Array:
    """Round finite values to the nearest bfloat16, ties to even; stays float32."""
    bits = values.view(np.uint32)
    bits = (bits + (0x7FFF + ((bits >> 16) & 1))) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)


def model_tensors(
    size: ModelSize, seed: str, head_gains: Mapping[int, float]
) -> dict[str, Float32Array]:
    """Draw all tensors of the model. ``head_gains``, by token id, add to or replace
    the default ones."""
    # The features come from the layer before the last, which is left out.
    num_layers = size.vision_num_layers - 1
    specs = [
        *_decoder_specs(size),
        *_projector_specs(size),
        *_vision_specs(size, "model.vision_tower.vision_tower.", num_layers),
    ]
    tensors = {spec.name: draw(spec, seed) for spec in specs}
    gains = {**DEFAULT_HEAD_GAINS, **head_gains}
    factors = np.ones((VOCAB_ROWS, 1), dtype=np.float32)
    factors[list(gains), 0] = list(gains.values())
    tensors["lm_head.weight"] = round_to_bfloat16(tensors["lm_head.weight"] * factors)
    return tensors


def decoy_vision_tensors(size: ModelSize, seed: str) -> dict[str, Float32Array]:
    """Draw a complete vision model with other weights than the model's own tower.

    It stands where the configuration's ``mm_vision_tower`` points to. A loader that
    takes the tower from there instead of from the model's files gets wrong features.
    """
    specs = [
        *_vision_specs(size, "", size.vision_num_layers),
        *_pooling_head_specs(size),
    ]
    return {spec.name: draw(spec, f"{seed}/decoy") for spec in specs}


def _decoder_specs(size: ModelSize) -> Iterator[TensorSpec]:
    hidden, inner = size.hidden_size, size.intermediate_size
    square = (hidden, hidden)
    # Scales that keep the activations of a wider model as large as the tiny one's.
    width, inner_width = math.sqrt(128 / hidden), math.sqrt(256 / inner)
    # The fast-rotating pairs are louder, so that neighbouring masks get other logits.
    pairs = size.head_dim // 2
    rotary = np.where(np.arange(pairs) < 3 * pairs // 8, 1.5, 0.8)
    rotary = np.tile(rotary, 2 * size.num_heads)
    yield TensorSpec("model.embed_tokens.weight", (VOCAB_ROWS, hidden), 0.5)
    for layer in range(size.num_layers):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield TensorSpec(f"{prefix}{norm}.weight", (hidden,), 0.15, mean=1.0)
        for name, shape, std, row_gains in (
            ("self_attn.q_proj", square, 0.16 * width, rotary),
            ("self_attn.k_proj", square, 0.16 * width, rotary),
            ("self_attn.v_proj", square, 0.13 * width, None),
            ("self_attn.o_proj", square, 0.13 * width, None),
            ("mlp.gate_proj", (inner, hidden), 0.12 * width, None),
            ("mlp.up_proj", (inner, hidden), 0.12 * width, None),
            ("mlp.down_proj", (hidden, inner), 0.10 * inner_width, None),
        ):
            yield TensorSpec(f"{prefix}{name}.weight", shape, std, row_gains=row_gains)
    yield TensorSpec("model.norm.weight", (hidden,), 0.15, mean=1.0)
    yield TensorSpec("lm_head.weight", (VOCAB_ROWS, hidden), 0.28 * width)


def _projector_specs(size: ModelSize) -> Iterator[TensorSpec]:
    hidden, prefix = size.hidden_size, "model.mm_projector."
    second_std = 0.05 * math.sqrt(128 / hidden)
    yield TensorSpec("model.image_newline", (hidden,), 0.5)
    yield from _linear_specs(f"{prefix}0", hidden, size.vision_hidden_size, 0.12, 0.1)
    yield from _linear_specs(f"{prefix}2", hidden, hidden, second_std, 0.1)


def _vision_specs(
    size: ModelSize, prefix: str, num_layers: int
) -> Iterator[TensorSpec]:
    hidden = size.vision_hidden_size
    prefix += "vision_model."
    patch = f"{prefix}embeddings.patch_embedding"
    position = f"{prefix}embeddings.position_embedding"
    yield TensorSpec(f"{patch}.weight", (hidden, 3, PATCH_SIZE, PATCH_SIZE), 0.09)
    yield TensorSpec(f"{patch}.bias", (hidden,), 0.1)
    yield TensorSpec(f"{position}.weight", (PATCHES_PER_TILE, hidden), 0.3)
    for layer in range(num_layers):
        block = f"{prefix}encoder.layers.{layer}."
        yield from _norm_specs(f"{block}layer_norm1", hidden)
        yield from _norm_specs(f"{block}layer_norm2", hidden)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear_specs(f"{block}self_attn.{name}", hidden, hidden, 0.18)
        yield from _vision_mlp_specs(f"{block}mlp", size)
    yield from _norm_specs(f"{prefix}post_layernorm", hidden)


def _pooling_head_specs(size: ModelSize) -> Iterator[TensorSpec]:
    hidden = size.vision_hidden_size
    prefix = "vision_model.head."
    fused = f"{prefix}attention.in_proj"
    yield TensorSpec(f"{prefix}probe", (1, 1, hidden), 1.0)
    yield TensorSpec(f"{fused}_weight", (3 * hidden, hidden), 0.18)
    yield TensorSpec(f"{fused}_bias", (3 * hidden,), 0.05)
    yield from _linear_specs(f"{prefix}attention.out_proj", hidden, hidden, 0.18)
    yield from _norm_specs(f"{prefix}layernorm", hidden)
    yield from _vision_mlp_specs(f"{prefix}mlp", size)


def _vision_mlp_specs(prefix: str, size: ModelSize) -> Iterator[TensorSpec]:
    hidden, inner = size.vision_hidden_size, size.vision_intermediate_size
    yield from _linear_specs(f"{prefix}.fc1", inner, hidden, 0.14)
    yield from _linear_specs(f"{prefix}.fc2", hidden, inner, 0.14)


def _linear_specs(
    prefix: str, outputs: int, inputs: int, std: float, bias_std: float = 0.05
) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{prefix}.weight", (outputs, inputs), std)
    yield TensorSpec(f"{prefix}.bias", (outputs,), bias_std)


def _norm_specs(prefix: str, width: int) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{prefix}.weight", (width,), 0.1, mean=1.0)
    yield TensorSpec(f"{prefix}.bias", (width,), 0.05)
