# SPDX-License-Identifier: Apache-2.0
"""LLaDA-V in plain PyTorch, scaled down, for training.

The names in the state dict are those of the official checkpoint. The arithmetic of
tiles and visual tokens is the server's own (`vllm_lladav.model.lladav.anyres`).
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn

from vllm_lladav.model.lladav.anyres import (
    AnyresGeometry,
    merge_tiles,
    num_visual_tokens,
)
from vllm_lladav.tiny.presets import ModelSize

TILE_SIZE = 96
PATCH_SIZE = 16
TILE_GRID = TILE_SIZE // PATCH_SIZE
PINPOINTS = tuple((TILE_SIZE * w, TILE_SIZE * h) for w in (1, 2) for h in (1, 2))
GEOMETRY = AnyresGeometry(PINPOINTS, TILE_SIZE, TILE_GRID, max_tiles=4)

SIZE = ModelSize(
    hidden_size=128,
    intermediate_size=352,
    num_layers=8,
    num_heads=4,
    vision_hidden_size=96,
    vision_intermediate_size=256,
    vision_num_layers=4,  # The last one is never used and not stored.
    vision_num_heads=4,
)
ROPE_THETA = 500_000.0
RMS_NORM_EPS = 1e-5
LAYER_NORM_EPS = 1e-6


@dataclass(frozen=True)
class VisualPlan:
    """Where the visual tokens of a picture size come from.

    Attributes:
        source: ``[num_visual_tokens]`` int64, rows of the tiles' joined features; the
            row behind the last one is the newline embedding.
        num_tiles: of the picture, the one of the whole picture included.
    """

    source: torch.Tensor
    num_tiles: int


@lru_cache(maxsize=64)
def visual_plan(size: tuple[int, int], num_tiles: int) -> VisualPlan:
    """Send row numbers instead of features through the server's `merge_tiles`."""
    rows = num_tiles * GEOMETRY.tile_tokens
    numbers = torch.arange(rows, dtype=torch.float32)
    merged = merge_tiles(
        numbers.view(num_tiles, GEOMETRY.tile_tokens, 1),
        size,
        torch.tensor([float(rows)]),
        GEOMETRY,
    )
    source = merged[:, 0].long()
    assert torch.equal(source.float(), merged[:, 0]), f"{size} is interpolated"
    assert len(source) == num_visual_tokens(*size, GEOMETRY)
    return VisualPlan(source, num_tiles)


class Norm(nn.Module):
    """RMSNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, RMS_NORM_EPS)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """``[b, heads, n, head_dim]`` each to ``[b, n, hidden]``; no mask.

    On a CPU and at these lengths several times as fast as torch's fused kernel.
    """
    scores = query * query.shape[-1] ** -0.5 @ key.mT
    return (scores.softmax(dim=-1).to(value.dtype) @ value).transpose(1, 2).flatten(2)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of ``[b, heads, n, head_dim]`` by ``[n, head_dim / 2]``."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(x.dtype)


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width = SIZE.hidden_size
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        projections = (self.q_proj, self.k_proj, self.v_proj)
        fused = torch.cat([projection.weight for projection in projections])
        query, key, value = (
            part.unflatten(-1, (SIZE.num_heads, SIZE.head_dim)).transpose(1, 2)
            for part in F.linear(x, fused).chunk(3, dim=-1)
        )
        mixed = attend(rotate(query, cos, sin), rotate(key, cos, sin), value)
        return self.o_proj(mixed)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width, inner = SIZE.hidden_size, SIZE.intermediate_size
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fused = torch.cat([self.gate_proj.weight, self.up_proj.weight])
        gate, up = F.linear(x, fused).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class DecoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm = Norm(SIZE.hidden_size)
        self.self_attn = SelfAttention()
        self.post_attention_layernorm = Norm(SIZE.hidden_size)
        self.mlp = Mlp()

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class VisionAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width = SIZE.vision_hidden_size
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            projection(x).unflatten(-1, (SIZE.vision_num_heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(attend(query, key, value))


class VisionMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width, inner = SIZE.vision_hidden_size, SIZE.vision_intermediate_size
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class VisionLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width = SIZE.vision_hidden_size
        self.layer_norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.self_attn = VisionAttention()
        self.layer_norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = VisionMlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class VisionEmbeddings(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width = SIZE.vision_hidden_size
        self.patch_embedding = nn.Conv2d(3, width, PATCH_SIZE, stride=PATCH_SIZE)
        self.position_embedding = nn.Embedding(GEOMETRY.tile_tokens, width)

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embedding(tiles).flatten(2).transpose(1, 2)
        return patches + self.position_embedding.weight


class Tower(nn.Module):
    """SigLIP up to the features of layer -2."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings()
        layers = [VisionLayer() for _ in range(SIZE.vision_num_layers - 1)]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """``[n, 3, tile_size, tile_size]`` to ``[n, tile_tokens, vision_hidden]``."""
        x = self.embeddings(tiles)
        for layer in self.encoder["layers"]:  # type: ignore[union-attr]
            x = layer(x)
        return x


class Body(nn.Module):
    """Everything but the head."""

    def __init__(self, vocab_rows: int) -> None:
        super().__init__()
        width = SIZE.hidden_size
        self.embed_tokens = nn.Embedding(vocab_rows, width)
        self.layers = nn.ModuleList(DecoderLayer() for _ in range(SIZE.num_layers))
        self.norm = Norm(width)
        tower = nn.ModuleDict({"vision_model": Tower()})
        self.vision_tower = nn.ModuleDict({"vision_tower": tower})
        self.mm_projector = nn.Sequential(
            nn.Linear(SIZE.vision_hidden_size, width),
            nn.GELU(),
            nn.Linear(width, width),
        )
        self.image_newline = nn.Parameter(torch.empty(width))


class Lladav(nn.Module):
    """The whole model; all sequences of a batch have the same layout."""

    def __init__(self, vocab_rows: int) -> None:
        super().__init__()
        self.model = Body(vocab_rows)
        self.lm_head = nn.Linear(SIZE.hidden_size, vocab_rows, bias=False)
        self.apply(_initialise)
        nn.init.normal_(self.model.image_newline, std=0.5)
        for layer in self.model.layers:
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                linear.weight.data.mul_(1 / math.sqrt(2 * SIZE.num_layers))

    @property
    def tower(self) -> Tower:
        return self.model.vision_tower["vision_tower"]["vision_model"]  # type: ignore

    def visual_embeddings(
        self, tiles: torch.Tensor, size: tuple[int, int]
    ) -> torch.Tensor:
        """``[b, num_tiles, 3, h, w]`` to ``[b, num_visual_tokens, hidden]``."""
        batch, num_tiles = tiles.shape[:2]
        plan = visual_plan(size, num_tiles)
        features = self.model.mm_projector(self.tower(tiles.flatten(0, 1)))
        features = features.view(batch, -1, SIZE.hidden_size)
        newline = self.model.image_newline.to(features.dtype)
        rows = torch.cat([features, newline.expand(batch, 1, -1)], dim=1)
        return rows[:, plan.source]

    def embed(
        self,
        visual: torch.Tensor,
        before: torch.Tensor,
        behind: torch.Tensor,
    ) -> torch.Tensor:
        """Embeddings of ids ``[b, n]`` before and behind the visual ones."""
        embed = self.model.embed_tokens
        return torch.cat([embed(before), visual.float(), embed(behind)], dim=1)

    def decode(self, embeds: torch.Tensor, num_canvas: int) -> torch.Tensor:
        """``[b, n, hidden]`` to the last ``num_canvas`` positions, after the norm."""
        x = self.layer_outputs(embeds)[-1]
        return self.model.norm(x[:, x.shape[1] - num_canvas :])

    def read(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits of ``[..., hidden]`` behind any layer."""
        return self.lm_head(self.model.norm(hidden))

    def layer_outputs(self, embeds: torch.Tensor) -> list[torch.Tensor]:
        """``[b, n, hidden]`` behind every layer."""
        cos, sin = rotary(embeds.shape[1])
        outputs, x = [], embeds
        for layer in self.model.layers:
            x = layer(x, cos, sin)
            outputs.append(x)
        return outputs


def rotary(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, ``[length, head_dim / 2]`` each."""
    half = SIZE.head_dim // 2
    frequency = ROPE_THETA ** (-torch.arange(half) / half)
    angle = torch.arange(length)[:, None] * frequency
    return angle.cos(), angle.sin()


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=1 / math.sqrt(module.in_features))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.5)
