# SPDX-License-Identifier: Apache-2.0
"""One step of a batch: who is in it, and where their rows are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d

from vllm_lladav.denoising.plan import StepIndex
from vllm_lladav.worker.prune_pass import PrunePass
from vllm_lladav.worker.request import DenoisingRequest

OnStep = Callable[[str, StepIndex, int, int], None]
"""Called before a step's transfers: with a request's id, which step of it this is, how
many masks it may transfer, and how many are in its canvas."""


class Turn(NamedTuple):
    """A request whose step ends.

    Attributes:
        origin: row of its position 0 in the batch: negative, or in another request,
            where the step does not compute that position.
        candidates: ``[n]``, int64, positions that may be transferred.
    """

    request: DenoisingRequest
    origin: int
    candidates: np.ndarray


Places = Sequence[tuple[Turn, np.ndarray]]
"""Positions of several requests: ``[n]``, int64 each."""


@dataclass
class BatchStep:
    """One forward pass.

    Attributes:
        requests: in batch order.
        prune_pass: prunes on the way through the layers.
        on_step: tells an observer.
        hidden_states: ``[num_tokens, hidden]``, after the final norm, of the tokens
            that are left; set by the model's forward.
    """

    requests: list[DenoisingRequest]
    prune_pass: PrunePass
    on_step: OnStep | None = None
    hidden_states: torch.Tensor | None = field(default=None, repr=False)

    def turns(self) -> list[Turn]:
        """Once the forward pass is done. A request may have ended while this step was
        already scheduled: it has none."""
        found, row = [], 0
        for request in self.requests:
            step = request.step
            if not request.canvas.finished:
                candidates = request.canvas.candidates(step.layout.first)
                found.append(Turn(request, row - step.computed.first, candidates))
            row += step.num_rows
        return found

    def hidden_at(self, places: Places) -> torch.Tensor:
        """``[n, hidden]`` at all of ``places``, guidance applied.

        The official code combines logits. The head is linear, so hidden states do as
        well, at half the products.
        """
        assert self.hidden_states is not None
        device = self.hidden_states.device
        rows = np.concatenate([turn.origin + positions for turn, positions in places])
        hidden_states = self._rows(rows)
        requests = [turn.request for turn, _ in places]
        if all(request.num_sequences == 1 for request in requests):
            return hidden_states
        counts = [len(positions) for _, positions in places]
        offsets = [(r.num_sequences - 1) * len(r) for r in requests]
        weights = [request.cfg_scale + 1 for request in requests]
        twins = self._rows(rows + np.repeat(offsets, counts))
        weight = async_tensor_h2d(
            np.repeat(weights, counts)[:, None], device=device, dtype=torch.float32
        )
        guided = torch.lerp(twins.float(), hidden_states.float(), weight)
        return guided.to(hidden_states.dtype)

    def _rows(self, rows: np.ndarray) -> torch.Tensor:
        assert self.hidden_states is not None
        device = self.hidden_states.device
        return self.hidden_states[
            async_tensor_h2d(rows, device=device, dtype=torch.int64)
        ]
