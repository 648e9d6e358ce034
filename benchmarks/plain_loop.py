# SPDX-License-Identifier: Apache-2.0
"""LLaDA-V in plain PyTorch, as the official code runs it: the baseline.

One request at a time, float32, torch's attention over the whole sequence. The image is
encoded once; every denoising step recomputes the decoder over prompt and canvas. Tiles
and the order of visual tokens come from the project, all arithmetic on them is here.
"""

import copy
import ctypes
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import AutoTokenizer, SiglipVisionModel

from vllm_lladav.model.lladav.anyres import AnyresGeometry, merge_tiles, preprocess
from vllm_lladav.model.lladav.config import LladavConfig, register_config
from vllm_lladav.model.lladav.vision import (
    NEWLINE_NAME,
    PROJECTOR_PREFIX,
    TOWER_PREFIX,
    build_projector,
    geometry_from_config,
)

LogitsRows = Literal["all", "canvas"]
"""Rows that the head and the softmax see: ``all``, as in the official code, or those
of the canvas, the only ones that are used."""


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # Of <malloc.h>.


class PlainRun(NamedTuple):
    """Canvas tokens, and where the seconds went."""

    tokens: list[int]
    encode_seconds: float
    step_seconds: list[float]

    @property
    def wall(self) -> float:
        return self.encode_seconds + sum(self.step_seconds)

    def scaled(self, steps: int) -> float:
        """Seconds of a run with that many steps: they all cost the same."""
        mean = sum(self.step_seconds) / len(self.step_seconds)
        return self.encode_seconds + mean * steps


class PlainLladav:
    """Reads a checkpoint directory."""

    def __init__(self, checkpoint: Path) -> None:
        register_config()
        self.config = LladavConfig.from_pretrained(str(checkpoint))
        num_tokens = len(AutoTokenizer.from_pretrained(str(checkpoint)))
        self.image_token_id = num_tokens  # As in the engine's prompts.
        self.num_heads = self.config.num_attention_heads
        assert self.config.num_key_value_heads == self.num_heads
        weights: dict[str, torch.Tensor] = {}
        for shard in sorted(checkpoint.glob("model*.safetensors")):
            for name, tensor in load_file(shard).items():
                weights[name] = tensor.float()
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            # As the official loader does.
            weights[name] = weights[name][:num_tokens]
        self.embedding = weights["model.embed_tokens.weight"]
        self.weights = weights
        self.vision = PlainVision(self.config, weights)

    @torch.inference_mode()
    def generate(
        self,
        prompt_ids: Sequence[int],
        image: Image.Image,
        gen_length: int,
        block_length: int,
        steps: int,
        logits: LogitsRows = "all",
    ) -> PlainRun:
        """Denoise greedily, keeping the most confident predictions.

        Args:
            prompt_ids: one ``image_token_id`` per visual token.
            steps: over all blocks; a multiple of their number.
        """
        start = time.perf_counter()
        prompt = self._prompt_embeds(torch.tensor(prompt_ids), image)
        clock = [time.perf_counter()]
        num_blocks = gen_length // block_length
        assert num_blocks * block_length == gen_length and steps % num_blocks == 0
        canvas = torch.full((gen_length,), self.config.mask_token_id)
        rotary = self._rotary(len(prompt) + gen_length)
        predict = self._predict_all if logits == "all" else self._predict_canvas
        for block in range(num_blocks):
            end = (block + 1) * block_length
            for count in _quotas(block_length, steps // num_blocks):
                is_mask = canvas == self.config.mask_token_id
                if not is_mask[end - block_length : end].any():
                    break  # There were more steps than masks.
                embeds = torch.cat([prompt, self.embedding[canvas]])
                tokens, confidence = predict(self._decode(embeds, rotary), is_mask)
                confidence[~is_mask] = float("-inf")
                confidence[end:] = float("-inf")
                chosen = torch.topk(confidence, count).indices
                chosen = chosen[is_mask[chosen]]
                canvas[chosen] = tokens[chosen]
                clock.append(time.perf_counter())
        seconds = [after - before for before, after in pairwise(clock)]
        return PlainRun(canvas.tolist(), clock[0] - start, seconds)

    def _prompt_embeds(self, ids: torch.Tensor, image: Image.Image) -> torch.Tensor:
        """``[n]`` -> ``[n, hidden]``, the visual tokens in their place."""
        is_image = ids == self.image_token_id
        embeds = self.embedding[ids.masked_fill(is_image, 0)]
        embeds[is_image] = self.vision(image)
        return embeds

    def _predict_all(
        self, hidden: torch.Tensor, is_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``[n, hidden]`` of prompt and canvas -> tokens and confidence, ``[canvas]``
        each, computed for every row before the canvas is looked at."""
        canvas = slice(len(hidden) - len(is_mask), None)
        everywhere = is_mask.new_zeros(len(hidden))
        everywhere[canvas] = is_mask
        tokens, confidence = self._predict(hidden, everywhere)
        return tokens[canvas], confidence[canvas]

    def _predict_canvas(
        self, hidden: torch.Tensor, is_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for the rows of the canvas only."""
        return self._predict(hidden[-len(is_mask) :], is_mask)

    def _predict(
        self, hidden: torch.Tensor, is_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``[n, hidden]`` -> tokens ``[n]`` (int64), confidence ``[n]`` (float64)."""
        logits = functional.linear(hidden, self.weights["lm_head.weight"])
        for token_id in self.config.banned_token_ids:
            logits[:, token_id].masked_fill_(is_mask, float("-inf"))
        tokens = logits.argmax(dim=-1)
        probabilities = functional.softmax(logits.double(), dim=-1)
        return tokens, probabilities.gather(-1, tokens[:, None])[:, 0]

    def _rotary(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, ``[length, head_dim]`` each."""
        half = torch.arange(0, self.config.head_dim, 2) / self.config.head_dim
        angle = torch.arange(length)[:, None] * self.config.rope_theta ** (-half)
        angle = torch.cat([angle, angle], dim=-1)
        return angle.cos(), angle.sin()

    def _decode(
        self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Embeddings ``[n, hidden]`` -> ``[n, hidden]`` after the final norm."""
        for layer in range(self.config.num_hidden_layers):
            prefix = f"model.layers.{layer}."
            normed = self._norm(prefix + "input_layernorm", x)
            x = x + self._attend(prefix + "self_attn.", normed, rotary)
            normed = self._norm(prefix + "post_attention_layernorm", x)
            gate = functional.silu(self._linear(prefix + "mlp.gate_proj", normed))
            up = self._linear(prefix + "mlp.up_proj", normed)
            x = x + self._linear(prefix + "mlp.down_proj", gate * up)
        return self._norm("model.norm", x)

    def _attend(
        self, prefix: str, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Every position attends to every other one: ``[n, hidden]`` -> the same."""
        query, key, value = (
            self._linear(f"{prefix}{part}_proj", x)
            .view(1, len(x), self.num_heads, self.config.head_dim)
            .transpose(1, 2)
            for part in "qkv"
        )
        mixed = functional.scaled_dot_product_attention(
            _rotate(query, rotary), _rotate(key, rotary), value
        )
        mixed = mixed.transpose(1, 2).reshape(len(x), -1)
        return self._linear(prefix + "o_proj", mixed)

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weights[name + ".weight"])

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        mean_square = x.pow(2).mean(dim=-1, keepdim=True)
        normed = x * torch.rsqrt(mean_square + self.config.rms_norm_eps)
        return self.weights[name + ".weight"] * normed


class PlainVision:
    """SigLIP up to the layer before its last, projector and anyres merge.

    Args:
        weights: of the checkpoint, by their official names.
    """

    def __init__(self, config: LladavConfig, weights: dict[str, torch.Tensor]) -> None:
        self.geometry: AnyresGeometry = geometry_from_config(config)
        siglip = copy.copy(config.vision_config)
        siglip.num_hidden_layers -= 1
        siglip.vision_use_head = False
        tower = SiglipVisionModel._from_config(siglip, attn_implementation="sdpa")
        # transformers before 5.5 has one module more around it.
        self.tower = getattr(tower, "vision_model", tower)
        self.tower.post_layernorm = nn.Identity()
        self.projector = build_projector(config)
        self.newline = weights[NEWLINE_NAME]
        for module, prefix in (
            (self.tower, TOWER_PREFIX + "vision_model."),
            (self.projector, PROJECTOR_PREFIX),
        ):
            names = module.state_dict()
            module.load_state_dict({name: weights[prefix + name] for name in names})

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """``[num_visual_tokens, hidden]``, float32."""
        tiles = preprocess(image, self.geometry)
        features = self.projector(self.tower(tiles).last_hidden_state)
        return merge_tiles(features, image.size, self.newline, self.geometry)


def keep_freed_memory() -> None:
    """Let this process reuse large tensors' memory instead of giving it back.

    The C library returns it to the system by default, and the page faults of the next
    step's logits then took a quarter to a half of a step on a virtual machine.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # There is glibc.
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def _rotate(x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary embedding of ``[1, heads, n, head_dim]``."""
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _quotas(num_masks: int, steps: int) -> list[int]:
    """Positions that each step transfers; the first steps take the remainder."""
    return [num_masks // steps + (n < num_masks % steps) for n in range(steps)]
