# SPDX-License-Identifier: Apache-2.0
"""From hidden states to tokens: logits in tiles of bounded size."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from vllm.triton_utils import HAS_TRITON
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

from vllm_lladav.denoising.params import DenoisingParams
from vllm_lladav.denoising.traits import Traits
from vllm_lladav.denoising.unmasking import (
    chosen_probability,
    greedy_tokens,
    gumbel_tokens,
)
from vllm_lladav.kernels.greedy import greedy_choice
from vllm_lladav.worker.contract import DenoisingModel
from vllm_lladav.worker.logprobs import TokenLogprobs, token_logprobs
from vllm_lladav.worker.request import DenoisingRequest

LOGITS_TILE_BYTES = 32 << 20
"""Float32 logits that exist at once on a CPU; 66 rows of the official vocabulary."""

GPU_LOGITS_TILE_BYTES = 256 << 20
"""On a GPU, which reads the head once for every tile; 530 rows."""


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
        self, hidden_states: torch.Tensor, owners: Sequence[DenoisingRequest | None]
    ) -> Predictions:
        """A token for every row.

        Args:
            hidden_states: ``[n, hidden]``.
            owners: ``n`` requests, whose rows these are; None in warm-up runs.
        """
        if not owners:
            empty = torch.empty(0, device=self._device)
            return Predictions(empty.long(), empty.double())
        predictions = [
            self._predict_tile(hidden_states[tile], owners[tile])
            for tile in self._tiles(len(owners))
        ]
        return Predictions(*map(torch.cat, zip(*predictions, strict=True)))

    def logprobs(
        self, hidden_states: torch.Tensor, tokens: np.ndarray, num_top: int
    ) -> TokenLogprobs:
        """Of ``tokens`` (``[n]``, n > 0) at ``hidden_states`` (``[n, hidden]``)."""
        token_ids = async_tensor_h2d(tokens, device=self._device, dtype=torch.int64)
        tiles = [
            token_logprobs(
                self._logits(hidden_states[tile]).float(), token_ids[tile], num_top
            )
            for tile in self._tiles(len(tokens))
        ]
        return TokenLogprobs(*map(np.concatenate, zip(*tiles, strict=True)))

    def _tiles(self, num_rows: int) -> list[slice]:
        """Of even sizes: a product with a few rows costs as much as one with many."""
        tiles = torch.arange(num_rows).tensor_split(-(-num_rows // self.tile_rows))
        return [slice(int(tile[0]), int(tile[-1]) + 1) for tile in tiles]

    def _logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """``[n, padded vocabulary]``; -inf where no word may stand."""
        logits = self._model.compute_vocab_logits(hidden_states)
        return logits.index_fill_(-1, self._not_words, float("-inf"))

    def _predict_tile(
        self,
        hidden_states: torch.Tensor,
        owners: Sequence[DenoisingRequest | None],
    ) -> Predictions:
        """As :meth:`predict`, for at most as many rows as a tile has."""
        logits = self._logits(hidden_states)
        noisy = [
            (row, owner)
            for row, owner in enumerate(owners)
            if owner is not None and owner.params.temperature > 0
        ]
        if HAS_TRITON and not noisy:
            return Predictions(*greedy_choice(logits))
        logits = logits.float()
        best = chosen = greedy_tokens(logits)
        if noisy:
            chosen = best.clone()
        for row, owner in noisy:
            words = logits[row : row + 1, : self._vocab_size]
            words = _restricted(words, owner.params)
            noise = torch.empty_like(words, dtype=torch.float64)
            noise.uniform_(generator=owner.generator)
            chosen[row] = gumbel_tokens(words, owner.params.temperature, noise)
        return Predictions(chosen, chosen_probability(logits, best, chosen))


def _restricted(logits: torch.Tensor, params: DenoisingParams) -> torch.Tensor:
    """``[1, vocab]``: -inf outside of the ``top_k`` and ``top_p`` most likely tokens
    at the request's temperature, as vLLM applies them."""
    if params.top_k == 0 and params.top_p == 1.0:
        return logits
    k = p = None
    if params.top_k:
        count = min(params.top_k, logits.shape[-1])
        k = torch.tensor([count], dtype=torch.int32, device=logits.device)
    if params.top_p < 1.0:
        p = torch.tensor([params.top_p], device=logits.device)
    allowed = apply_top_k_top_p(logits / params.temperature, k, p).isfinite()
    return logits.masked_fill(~allowed, float("-inf"))
