# SPDX-License-Identifier: Apache-2.0
"""What is random about a batch: tokens that are drawn, and positions in random order.

All noise follows from a request's seed, the step, and the place in its canvas.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from vllm_lladav.denoising.canvas import Batch
from vllm_lladav.denoising.noise import row_keys, uniform_of
from vllm_lladav.denoising.params import DenoisingParams
from vllm_lladav.denoising.to_device import to_device
from vllm_lladav.worker.predictor import RowSampling


class CanvasRows(NamedTuple):
    """Rows of logits, by where they stand: ``[r]``, int64 each.

    Attributes:
        owners: the place of each one's request in the batch.
        offsets: in its canvas.
        steps: which step of it.
    """

    owners: torch.Tensor
    offsets: torch.Tensor
    steps: torch.Tensor


class Drawing:
    """
    Args:
        batch: canvases of the requests.
        all_params: of each.
        vocab_size: tokens that can be drawn.

    Attributes:
        is_drawn: which requests draw their tokens: ``[n]``, bool, on the host.
        is_random: whether anything is.
    """

    def __init__(
        self, batch: Batch, all_params: Sequence[DenoisingParams], vocab_size: int
    ) -> None:
        device = batch.slots.device
        self.is_drawn = np.array([params.temperature > 0 for params in all_params])
        ranks_randomly = [params.remasking == "random" for params in all_params]
        self.is_random = bool(self.is_drawn.any()) or any(ranks_randomly)
        if not self.is_random:
            return
        seeds = [_as_int64(params.seed or 0) for params in all_params]
        self._seeds = to_device(seeds, device)
        self._ranks_randomly = to_device(ranks_randomly, device)
        self._drawn = to_device(self.is_drawn.tolist(), device)[:, None]
        top_k = [min(params.top_k or vocab_size, vocab_size) for params in all_params]
        top_p = [params.top_p for params in all_params]
        temperature = [params.temperature for params in all_params]
        self._temperature = to_device(temperature, device, torch.float64)
        self._top_k = to_device(top_k, device, torch.int32)
        self._top_p = to_device(top_p, device, torch.float32)
        self._restricts = min(top_k) < vocab_size or min(top_p) < 1

    def of(self, candidates: torch.Tensor, is_drawn: bool) -> torch.Tensor:
        """Those of the ``candidates`` (``[n, w]``, bool) that are drawn or not."""
        if bool((self.is_drawn == is_drawn).all()):
            return candidates
        return candidates & (self._drawn == is_drawn)

    def rows(self, rows: CanvasRows) -> RowSampling:
        """Of rows that are all drawn."""
        owners = rows.owners
        return RowSampling(
            temperature=self._temperature[owners],
            top_k=self._top_k[owners],
            top_p=self._top_p[owners],
            keys=row_keys(self._seeds[owners], rows.steps, rows.offsets),
            restricts=self._restricts,
        )

    def ranking(self, rows: CanvasRows, confidence: torch.Tensor) -> torch.Tensor:
        """What ranks rows: their ``confidence`` (``[r]``, float64), or noise, which is
        other than their tokens'."""
        keys = row_keys(self._seeds[rows.owners], rows.steps, -1 - rows.offsets)
        is_random = self._ranks_randomly[rows.owners] & ~confidence.isnan()
        return torch.where(is_random, uniform_of(keys), confidence)


def _as_int64(number: int) -> int:
    """The same 64 bits, with a sign."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)
