# SPDX-License-Identifier: Apache-2.0
"""Pruning of visual tokens on the plain decoder, one request at a time.

Written from the method's description (FastV, arXiv 2403.06764; LLaDA-FastV, arXiv
2601.20168). It shares no code with the package.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from tests.reference.decoder import Cached, Decoder, Keep

Stage = tuple[int, int, float]
"""Denoising step and layer, both from 1, and rate."""

Score = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, list[int]], torch.Tensor]
"""Attention weights ``[heads, n, n]``, keys ``[heads, n, head_dim]``, rows whose
attention counts, visual positions -> score of each visual token."""


def fastv(
    weights: torch.Tensor, keys: torch.Tensor, rows: torch.Tensor, visual: list[int]
) -> torch.Tensor:
    return weights[:, rows].mean(dim=(0, 1))[visual]


def similarity(
    weights: torch.Tensor, keys: torch.Tensor, rows: torch.Tensor, visual: list[int]
) -> torch.Tensor:
    """How unlike a token's key is to that of any visual token before it."""
    unit = keys[:, visual] / keys[:, visual].norm(dim=-1, keepdim=True)
    cosine = (unit @ unit.mT).tril(-1)
    cosine = cosine.masked_fill(torch.ones_like(cosine).triu().bool(), -1.0)
    return -cosine.amax(dim=-1).mean(dim=0)


@dataclass
class PrunedLogits:
    """``LogitsFn`` of a request that prunes: called once per denoising step.

    Attributes:
        decoder: plain.
        prompt_embeds: ``[P, hidden]``, visual tokens merged in.
        images: start and end of every image in the prompt.
        stages: in order.
        mask_id: of the model.
        score: ranks.
        queries: ``all``, ``answer`` or ``last``.
        compact: whether later steps renumber the positions.
        cache: ``prompt`` (dLLM-Cache), ``prefix`` or ``dual`` (Fast-dLLM, arXiv
            2505.22618): what a step reads as an earlier one left it.
        refresh_interval: every so many steps compute everything, counted over the
            request (``prompt``) or from the start of a block.
        block_length, steps_per_block: of the canvas.
        stop: token sequence; ``prefix`` and ``dual`` compute nothing from there on.
        cfg_scale: of guidance, as in the official code: a second pass sees mask
            embeddings for the prompt, and drops what the first one drops.
        kept: original positions that are left, after every stage.
    """

    decoder: Decoder
    prompt_embeds: torch.Tensor
    images: Sequence[tuple[int, int]]
    stages: Sequence[Stage]
    mask_id: int
    score: Score = fastv
    queries: str = "all"
    compact: bool = False
    cache: str = "prompt"
    refresh_interval: int = 1
    block_length: int = 4
    steps_per_block: int = 2
    stop: tuple[int, ...] = ()
    cfg_scale: float = 0.0
    kept: list[list[int]] = field(default_factory=list)
    _step: int = 0
    _left: torch.Tensor | None = None
    _kv: dict[int, Any] = field(default_factory=dict)
    _twin_kv: dict[int, Any] = field(default_factory=dict)

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        self._step += 1
        prompt_len = len(self.prompt_embeds)
        if self._left is None:
            self._left = torch.arange(len(token_ids))
        # Placeholders of images have no embedding.
        known = token_ids.clamp(max=len(self.decoder.embedding) - 1)
        embeds = self.decoder.embedding[known]
        embeds[:prompt_len] = self.prompt_embeds
        attended = self._left
        positions = torch.arange(len(attended)) if self.compact else attended
        prunes = any(step == self._step for step, _, _ in self.stages)
        computed = torch.ones(len(attended), dtype=torch.bool)
        if not prunes:
            computed = self._computed(attended, prompt_len)
            if self.cache != "prompt" and not computed.all():
                end = self._stop(token_ids, prompt_len)
                first = int(attended[computed][0])
                computed &= attended < max(end, first + 1)
        stays: dict[int, torch.Tensor] = {}

        def keep(layer: int, weights: torch.Tensor, keys: torch.Tensor):
            for step, stage_layer, rate in self.stages:
                if (step, stage_layer) == (self._step, layer):
                    stays[layer] = self._prune(rate, weights, keys, token_ids)
            return stays.get(layer)

        def logits_of(embeds: torch.Tensor, kv: dict[int, Any], keep: Keep):
            hidden = self.decoder.hidden_states(
                embeds[attended[computed]],
                positions[computed],
                keep if prunes else None,
                Cached(kv, attended[computed], attended),
            )
            logits = torch.zeros(len(token_ids), len(self.decoder.head))
            rows = self._left if prunes else attended[computed]
            is_mask = token_ids[rows] == self.mask_id
            logits[rows[is_mask]] = hidden[is_mask] @ self.decoder.head.T
            return logits

        logits = logits_of(embeds, self._kv, keep)
        if self.cfg_scale == 0:
            return logits
        embeds[:prompt_len] = self.decoder.embedding[self.mask_id]
        unguided = logits_of(
            embeds, self._twin_kv, lambda layer, weights, keys: stays.get(layer)
        )
        return unguided + (self.cfg_scale + 1) * (logits - unguided)

    def _stop(self, token_ids: torch.Tensor, prompt_len: int) -> int:
        """Position of the stop, or the end."""
        tokens = tuple(token_ids.tolist())
        starts = range(prompt_len, len(tokens) if self.stop else prompt_len)
        where = (i for i in starts if tokens[i : i + len(self.stop)] == self.stop)
        return next(where, len(tokens))

    def _computed(self, attended: torch.Tensor, prompt_len: int) -> torch.Tensor:
        """Which of the tokens this step computes: ``[n]``, bool."""
        block, step_in_block = divmod(self._step - 1, self.steps_per_block)
        count = self._step - 1 if self.cache == "prompt" else step_in_block
        if count % self.refresh_interval == 0:
            return torch.ones(len(attended), dtype=torch.bool)
        if self.cache == "prompt":
            return attended >= prompt_len
        start = prompt_len + block * self.block_length
        if self.cache == "prefix":
            return attended >= start
        return (attended >= start) & (attended < start + self.block_length)

    def _prune(
        self,
        rate: float,
        weights: torch.Tensor,
        keys: torch.Tensor,
        token_ids: torch.Tensor,
    ) -> torch.Tensor:
        assert self._left is not None
        left = self._left.tolist()
        is_visual = [any(a <= p < b for a, b in self.images) for p in left]
        visual = [row for row, yes in enumerate(is_visual) if yes]
        rows = torch.arange(len(left))
        if self.queries == "answer":
            rows = rows[
                (self._left >= len(self.prompt_embeds))
                & (token_ids[self._left] == self.mask_id)
            ]
        elif self.queries == "last":
            rows = rows[-1:]
        scores = self.score(weights, keys, rows, visual).tolist()
        num_kept = len(visual) - math.floor(rate * len(visual))
        ranked = sorted(range(len(visual)), key=lambda i: (-scores[i], i))
        chosen = {visual[i] for i in ranked[:num_kept]}
        stay = [row for row, yes in enumerate(is_visual) if not yes or row in chosen]
        self._left = self._left[stay]
        self.kept.append([left[row] for row in sorted(chosen)])
        return torch.tensor(stay)
