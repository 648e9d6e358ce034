# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of answer tokens, each from the step that unmasked it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from vllm.v1.outputs import LogprobsTensors


class TokenLogprobs(NamedTuple):
    """Of ``k`` tokens, with the ``n`` most likely tokens in their places.

    Attributes:
        token_ids: ``[k, n + 1]``, int32; the token itself comes first.
        logprobs: ``[k, n + 1]``, float32.
        ranks: ``[k]``, int32, of the token itself, counted from 1.
    """

    token_ids: np.ndarray
    logprobs: np.ndarray
    ranks: np.ndarray

    @classmethod
    def empty(cls, num_tokens: int, num_top: int) -> "TokenLogprobs":
        """Room for ``num_tokens``, each with the log-probability 0 until it is set."""
        return cls(
            np.zeros((num_tokens, num_top + 1), np.int32),
            np.zeros((num_tokens, num_top + 1), np.float32),
            np.ones(num_tokens, np.int32),
        )


def token_logprobs(
    logits: torch.Tensor, token_ids: torch.Tensor, num_top: int
) -> TokenLogprobs:
    """
    Args:
        logits: ``[k, vocab]``, float32.
        token_ids: ``[k]``, int64.
        num_top: most likely tokens to name beside each.
    """
    logprobs = logits.log_softmax(dim=-1)
    own = logprobs.gather(-1, token_ids[:, None])
    top, top_ids = logprobs.topk(num_top, dim=-1)
    return TokenLogprobs(
        torch.cat([token_ids[:, None], top_ids], dim=1).int().cpu().numpy(),
        torch.cat([own, top], dim=1).cpu().numpy(),
        # As vLLM ranks: with those that are as likely.
        (logprobs >= own).sum(dim=-1).int().cpu().numpy(),
    )


class CanvasLogprobs:
    """Log-probabilities of one request's canvas.

    Args:
        gen_length: canvas positions.
        num_top: most likely tokens that the client asked for.
    """

    def __init__(self, gen_length: int, num_top: int) -> None:
        self.num_top = num_top
        self._canvas = TokenLogprobs.empty(gen_length, num_top)

    def record(self, places: np.ndarray, logprobs: TokenLogprobs) -> None:
        """Keep those of the canvas positions ``places`` (``[k]``, from 0)."""
        width = self.num_top + 1
        self._canvas.token_ids[places] = logprobs.token_ids[:, :width]
        self._canvas.logprobs[places] = logprobs.logprobs[:, :width]
        self._canvas.ranks[places] = logprobs.ranks

    def emitted(self, first: int, end: int, suffix: Sequence[int]) -> TokenLogprobs:
        """Of the canvas positions ``[first, end)`` and of ``suffix`` tokens, which
        are given and so have log-probability 0."""
        fixed = TokenLogprobs.empty(len(suffix), self.num_top)
        fixed.token_ids[:] = np.array(suffix, np.int32)[:, None]
        canvas = (part[first:end] for part in self._canvas)
        return TokenLogprobs(*map(np.concatenate, zip(canvas, fixed, strict=True)))


def packed(parts: Sequence[TokenLogprobs | None]) -> LogprobsTensors | None:
    """For vLLM's output: ``parts`` of all requests in batch order, None where a
    request asked for none."""
    asked = [part for part in parts if part is not None]
    if not asked:
        return None
    width = max(part.token_ids.shape[1] for part in asked)
    counts = [0 if part is None else len(part.ranks) for part in parts]
    return LogprobsTensors(
        torch.from_numpy(np.concatenate([_widened(p.token_ids, width) for p in asked])),
        torch.from_numpy(np.concatenate([_widened(p.logprobs, width) for p in asked])),
        torch.from_numpy(np.concatenate([part.ranks for part in asked])),
        cu_num_generated_tokens=np.cumsum([0, *counts]).tolist(),
    )


def _widened(values: np.ndarray, width: int) -> np.ndarray:
    """``[k, n]`` to ``[k, width]``: vLLM reads as many columns as were asked for."""
    return np.pad(values, ((0, 0), (0, width - values.shape[1])))
