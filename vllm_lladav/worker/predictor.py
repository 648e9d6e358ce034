# SPDX-License-Identifier: Apache-2.0
"""From hidden states to tokens: logits in tiles of bounded size."""

from typing import NamedTuple

import numpy as np
import torch
from vllm.triton_utils import HAS_TRITON
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

from vllm_lladav.denoising.noise import uniform
from vllm_lladav.denoising.traits import Traits
from vllm_lladav.denoising.unmasking import (
    chosen_probability,
    greedy_tokens,
    gumbel_tokens,
)
from vllm_lladav.kernels.greedy import greedy_choice
from vllm_lladav.kernels.sampled import sampled_choice
from vllm_lladav.worker.contract import DenoisingModel
from vllm_lladav.worker.logprobs import TokenLogprobs, token_logprobs

LOGITS_TILE_BYTES = 32 << 20
"""Float32 logits that exist at once on a CPU; 66 rows of the official vocabulary."""

GPU_LOGITS_TILE_BYTES = 256 << 20
"""On a GPU, which reads the head once for every tile; 530 rows."""

NOISE_BYTES = 4 << 20
"""Float64 noise that exists at once where torch samples: of 4 rows of the official
vocabulary, which a cache holds."""


class RowSampling(NamedTuple):
    """How rows are sampled, one number for each, on the device.

    Attributes:
        temperature: > 0: ``[n]``, float64.
        top_k: ``[n]``, int32; where it is off, the size of the vocabulary.
        top_p: ``[n]``, float32; where it is off, 1.
        keys: of the noise (``denoising/noise.py``): ``[n]``, int64.
        restricts: whether ``top_k`` or ``top_p`` is on in any row.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    keys: torch.Tensor
    restricts: bool

    def at(self, rows: slice) -> "RowSampling":
        return RowSampling(
            self.temperature[rows],
            self.top_k[rows],
            self.top_p[rows],
            self.keys[rows],
            self.restricts,
        )


class Predictions(NamedTuple):
    """
    Attributes:
        tokens: ``[n]``, int64.
        confidence: of each: ``[n]``, float64.
    """

    tokens: torch.Tensor
    confidence: torch.Tensor


class Predictor:
    """The model's head, and what a request makes of its logits."""

    def __init__(
        self, model: DenoisingModel, traits: Traits, device: torch.device
    ) -> None:
        self._model = model
        self._device = device
        self._vocab_size = traits.num_tokens
        padding = range(self._vocab_size, model.padded_vocab_size)
        self._not_words = torch.tensor(
            [*traits.banned_token_ids, *padding], dtype=torch.int64, device=device
        )
        on_cpu = device.type == "cpu"
        tile_bytes = LOGITS_TILE_BYTES if on_cpu else GPU_LOGITS_TILE_BYTES
        self.tile_rows = max(1, tile_bytes // (4 * self._vocab_size))

    def predict(
        self, hidden_states: torch.Tensor, sampling: RowSampling | None
    ) -> Predictions:
        """A token for every row. Nothing in here waits for a GPU.

        Args:
            hidden_states: ``[n, hidden]``.
            sampling: of all the rows; None if they are greedy.
        """
        if not len(hidden_states):
            empty = torch.empty(0, device=self._device)
            return Predictions(empty.long(), empty.double())
        num_rows = self.most_rows(sampling is not None and sampling.restricts)
        predictions = [
            self._predict_tile(
                hidden_states[tile], None if sampling is None else sampling.at(tile)
            )
            for tile in self._tiles(len(hidden_states), num_rows)
        ]
        return Predictions(*map(torch.cat, zip(*predictions, strict=True)))

    def most_rows(self, restricts: bool) -> int:
        """That a tile has. Where a GPU restricts rows, it has their logits twice."""
        if HAS_TRITON and restricts:
            return max(1, self.tile_rows // 2)
        return self.tile_rows

    def warm_up(self, hidden_states: torch.Tensor) -> None:
        """Take as much memory as any step does, of rows like ``[1, hidden]``."""
        self.predict(hidden_states.expand(self.tile_rows, -1), None)
        if self._device.type == "cpu":
            return  # vLLM measures no memory there.
        num_rows = self.most_rows(restricts=True)
        sampling = restricted_rows(num_rows, self._vocab_size, self._device)
        self.predict(hidden_states.expand(num_rows, -1), sampling)

    def logprobs(
        self, hidden_states: torch.Tensor, tokens: torch.Tensor, num_top: int
    ) -> TokenLogprobs:
        """Of ``tokens`` (``[n]``, int64, n > 0) at ``hidden_states`` (``[n,
        hidden]``)."""
        tiles = [
            token_logprobs(
                self._logits(hidden_states[tile]).float(), tokens[tile], num_top
            )
            for tile in self._tiles(len(tokens), self.tile_rows)
        ]
        return TokenLogprobs(*map(np.concatenate, zip(*tiles, strict=True)))

    def _tiles(self, num_rows: int, most: int) -> list[slice]:
        """Of even sizes: a product with a few rows costs as much as one with many."""
        tiles = torch.arange(num_rows).tensor_split(-(-num_rows // most))
        return [slice(int(tile[0]), int(tile[-1]) + 1) for tile in tiles]

    def _logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """``[n, padded vocabulary]``; -inf where no word may stand."""
        logits = self._model.compute_vocab_logits(hidden_states)
        return logits.index_fill_(-1, self._not_words, float("-inf"))

    def _predict_tile(
        self, hidden_states: torch.Tensor, sampling: RowSampling | None
    ) -> Predictions:
        """As :meth:`predict`, for at most as many rows as a tile has."""
        logits = self._logits(hidden_states)
        if HAS_TRITON:
            return self._choose_on_gpu(logits, sampling)
        logits = logits.float()
        best = chosen = greedy_tokens(logits)
        if sampling is not None:
            chosen = self._sampled_tokens(logits, sampling)
        return Predictions(chosen, chosen_probability(logits, best, chosen))

    def _choose_on_gpu(
        self, logits: torch.Tensor, sampling: RowSampling | None
    ) -> Predictions:
        """From logits of any dtype: ``[n, padded vocabulary]``."""
        if sampling is None:
            return Predictions(*greedy_choice(logits))
        logits = logits[:, : self._vocab_size]
        restricted = _restricted(logits, sampling) if sampling.restricts else None
        temperature, keys = sampling.temperature, sampling.keys
        return Predictions(*sampled_choice(logits, restricted, temperature, keys))

    def _sampled_tokens(
        self, logits: torch.Tensor, sampling: RowSampling
    ) -> torch.Tensor:
        """From float32 logits ``[n, padded vocabulary]``: ``[n]``, int64. A few rows at
        a time: their numbers in float64 stay in a cache."""
        num_rows = max(1, NOISE_BYTES // (8 * self._vocab_size))
        size = min(num_rows, len(logits)), self._vocab_size
        noise = torch.empty(size, dtype=torch.float64, device=self._device)
        tokens = []
        for first in range(0, len(logits), num_rows):
            rows = slice(first, first + num_rows)
            words, of_rows = logits[rows, : self._vocab_size], sampling.at(rows)
            if sampling.restricts:
                dropped = _restricted(words, of_rows) == float("-inf")
                words = words.masked_fill(dropped, float("-inf"))
            drawn = uniform(of_rows.keys, self._vocab_size, out=noise[: len(words)])
            tokens.append(gumbel_tokens(words, of_rows.temperature, drawn))
        return torch.cat(tokens)


def restricted_rows(
    num_rows: int, num_tokens: int, device: torch.device
) -> RowSampling:
    """Any, to which all that can be done is done."""

    def rows(value: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((num_rows,), value, dtype=dtype, device=device)

    return RowSampling(
        temperature=rows(1.0, torch.float64),
        top_k=rows(num_tokens // 2, torch.int32),
        top_p=rows(0.5, torch.float32),
        keys=rows(0, torch.int64),
        restricts=True,
    )


def _restricted(logits: torch.Tensor, sampling: RowSampling) -> torch.Tensor:
    """``[n, vocab]``, float32, of ``logits`` at their temperatures: -inf outside of the
    ``top_k`` and ``top_p`` most likely tokens, as vLLM applies them."""
    k: torch.Tensor | None = sampling.top_k
    p: torch.Tensor | None = sampling.top_p
    if logits.device.type == "cpu":
        # It sorts for top-p, and its numbers can be looked at without a wait.
        k = k if bool((sampling.top_k < logits.shape[-1]).any()) else None
        p = p if bool((sampling.top_p < 1).any()) else None
    tempered = logits / sampling.temperature.float()[:, None]
    return apply_top_k_top_p(tempered, k, p)
