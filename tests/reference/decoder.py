# SPDX-License-Identifier: Apache-2.0
"""LLaDA-V's decoder in plain PyTorch, float32, one sequence at a time."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch.nn import functional

Keep = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor | None]
"""Layer (from 1), attention weights ``[heads, n, n]``, rotated keys ``[heads, n,
head_dim]`` -> rows that stay, ascending, or None for all."""


class Cached(NamedTuple):
    """K/V that outlive a forward pass.

    Attributes:
        kv: layer -> token -> (key, value), ``[heads, head_dim]`` each, the key
            rotated; the pass adds what it computes.
        queries: the token of every row, ``[n]``.
        attended: tokens that the rows attend to, ``[m]``; the rows among them.
    """

    kv: dict[int, Any]
    queries: torch.Tensor
    attended: torch.Tensor


class Decoder:
    """Reads a checkpoint directory. ``num_tokens`` is the tokenizer's length, to
    which the vocabulary is cut."""

    def __init__(self, checkpoint: Path, num_tokens: int) -> None:
        self.config = json.loads((checkpoint / "config.json").read_text())
        self.weights: dict[str, torch.Tensor] = {}
        for shard in sorted(checkpoint.glob("model-*.safetensors")):
            tensors = load_file(shard)
            self.weights |= {name: w.float() for name, w in tensors.items()}
        self.embedding = self.weights["model.embed_tokens.weight"][:num_tokens]
        self.head = self.weights["lm_head.weight"][:num_tokens]
        self.num_heads = self.config["num_attention_heads"]
        assert self.config["num_key_value_heads"] == self.num_heads
        self.head_dim = self.config["hidden_size"] // self.num_heads

    def logits(
        self, embeds: torch.Tensor, rows: torch.Tensor | Sequence[int]
    ) -> torch.Tensor:
        """``[n, hidden]`` -> ``[n, vocab]``; zeros but for ``rows``: the head is
        what takes the time."""
        logits = torch.zeros(len(embeds), len(self.head))
        logits[rows] = self.hidden_states(embeds)[rows] @ self.head.T
        return logits

    def hidden_states(
        self,
        embeds: torch.Tensor,
        positions: torch.Tensor | None = None,
        keep: Keep | None = None,
        cached: Cached | None = None,
    ) -> torch.Tensor:
        """``[n, hidden]`` -> ``[n left, hidden]``, after the final norm.

        Args:
            positions: ``[n]``, for the rotary embedding; 0 to n - 1 if None.
            keep: called after every layer; drops tokens.
            cached: K/V of other tokens that are attended to.
        """
        x = embeds
        positions = torch.arange(len(x)) if positions is None else positions
        cached = cached or Cached({}, torch.arange(len(x)), torch.arange(len(x)))
        assert keep is None or len(cached.queries) == len(cached.attended)
        queries, attended = cached.queries, cached.attended
        for layer in range(self.config["num_hidden_layers"]):
            prefix = f"model.layers.{layer}."
            mixed, attention, keys = self._attention(
                prefix + "self_attn.",
                self._norm(prefix + "input_layernorm", x),
                positions,
                Cached(cached.kv.setdefault(layer, {}), queries, attended),
            )
            x = x + mixed
            x = x + self._mlp(
                prefix + "mlp.", self._norm(prefix + "post_attention_layernorm", x)
            )
            kept = None if keep is None else keep(layer + 1, attention, keys)
            if kept is not None:
                x, positions = x[kept], positions[kept]
                queries = attended = queries[kept]
        return self._norm("model.norm", x)

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weights[name + ".weight"].T

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        mean_square = x.pow(2).mean(dim=-1, keepdim=True)
        scale = torch.rsqrt(mean_square + self.config["rms_norm_eps"])
        return x * scale * self.weights[name + ".weight"]

    def _attention(
        self, prefix: str, x: torch.Tensor, positions: torch.Tensor, cached: Cached
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Every position sees every other one. Output, weights ``[heads, n, n]`` and
        rotated keys ``[heads, n, head_dim]``."""
        query, key, value = (
            self._linear(f"{prefix}{name}_proj", x)
            .unflatten(-1, (self.num_heads, self.head_dim))
            .transpose(0, 1)  # [heads, n, head_dim]
            for name in "qkv"
        )
        key = self._rotate(key, positions)
        for row, token in enumerate(cached.queries.tolist()):
            cached.kv[token] = key[:, row], value[:, row]
        kv = [cached.kv[token] for token in cached.attended.tolist()]
        key = torch.stack([token_key for token_key, _ in kv], dim=1)
        value = torch.stack([token_value for _, token_value in kv], dim=1)
        scores = self._rotate(query, positions) @ key.mT / self.head_dim**0.5
        weights = scores.softmax(dim=-1)
        mixed = (weights @ value).transpose(0, 1).flatten(1)
        return self._linear(prefix + "o_proj", mixed), weights, key

    def _rotate(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Rotary embedding of ``[heads, n, head_dim]`` at ``positions`` (``[n]``)."""
        half = self.head_dim // 2
        frequency = self.config["rope_theta"] ** (-torch.arange(half) / half)
        angle = positions[:, None] * frequency  # [n, half]
        first, second = x[..., :half], x[..., half:]
        return torch.cat(
            [
                first * angle.cos() - second * angle.sin(),
                second * angle.cos() + first * angle.sin(),
            ],
            dim=-1,
        )

    def _mlp(self, prefix: str, x: torch.Tensor) -> torch.Tensor:
        gate = functional.silu(self._linear(prefix + "gate_proj", x))
        return self._linear(
            prefix + "down_proj", gate * self._linear(prefix + "up_proj", x)
        )
