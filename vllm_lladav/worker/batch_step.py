# SPDX-License-Identifier: Apache-2.0
"""One step of a batch: who is in it, and where their rows are."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d

from vllm_lladav.denoising.canvas import Batch
from vllm_lladav.denoising.plan import StepIndex
from vllm_lladav.worker.device_report import DeviceReport
from vllm_lladav.worker.prune_pass import PrunePass
from vllm_lladav.worker.request import DenoisingRequest

OnStep = Callable[[str, StepIndex, int, int], None]
"""Called before a step's transfers: with a request's id, which step of it this is, how
many masks it may transfer, and how many are in its canvas."""


class StepNumbers(NamedTuple):
    """What the host knows of each request in a step: ``[n]``, int64 each.

    Attributes:
        row: of its column 0 in the batch, if all columns followed one another. The
            step need not compute it.
        twin: rows from its sequence to its unconditional twin's; 0 without one.
        first: offset from which on masks may be transferred.
        next_first: position from which on the next step computes; -1 where that is up
            to the canvas.
        prompt_len: tokens that are left of its prompt.
        num_seen: tokens that vLLM counts as computed.
    """

    row: torch.Tensor
    twin: torch.Tensor
    first: torch.Tensor
    next_first: torch.Tensor
    prompt_len: torch.Tensor
    num_seen: torch.Tensor


@dataclass
class BatchStep:
    """One forward pass.

    Attributes:
        requests: in batch order.
        batch: their canvases.
        prune_pass: prunes on the way through the layers.
        replay: the forward pass as a CUDA graph; None where it runs layer by layer, or
            piece by piece.
        on_step: tells an observer.
        hidden_states: ``[num_tokens, hidden]``, after the final norm, of the tokens
            that are left; set by the model's forward.
        report: what :meth:`DenoisingRequest.learn` takes of each request: ``[n, 4]``;
            set at the end of the step.
    """

    requests: list[DenoisingRequest]
    batch: Batch
    prune_pass: PrunePass
    on_step: OnStep | None = None
    replay: Callable[[], torch.Tensor] | None = None
    hidden_states: torch.Tensor | None = field(default=None, repr=False)
    report: DeviceReport | None = field(default=None, repr=False)

    @property
    def num_rows(self) -> int:
        """Rows of the batch, as its requests are now."""
        return sum(request.step.num_rows for request in self.requests)

    def numbers(self, num_seen: np.ndarray) -> StepNumbers:
        """Once the forward pass is done; ``num_seen``: ``[n]``."""
        rows, row = [], 0
        for request, seen in zip(self.requests, num_seen.tolist(), strict=True):
            step, prompt_len = request.step, request.prompt_len
            start = row - step.computed.first + prompt_len
            rows.append(
                (
                    start - request.num_prompt_masks,
                    step.num_rows - step.computed.length,
                    step.layout.first - prompt_len,
                    request.planned_first(),
                    prompt_len,
                    seen,
                )
            )
            row += step.num_rows
        device = self.batch.slots.device
        return StepNumbers(*async_tensor_h2d(np.array(rows).T, device=device))

    def column_rows(self, numbers: StepNumbers) -> torch.Tensor:
        """Row of every column in the batch: ``[n, w]``, int64; where the step does not
        compute it, of another or of none."""
        rows = numbers.row[:, None] + self.batch.columns
        if self.batch.has_prompt_masks:
            for index, request in enumerate(self.requests):
                # They are predicted without a cache only: position 0 is computed.
                shift = request.num_prompt_masks - request.prompt_len
                of_masks = rows[index, : request.num_prompt_masks]
                of_masks.copy_(numbers.row[index] + shift + request.prompt_masks)
        return rows

    @property
    def is_guided(self) -> bool:
        """Whether any request is."""
        return any(request.num_sequences > 1 for request in self.requests)

    def hidden_at(
        self, rows: torch.Tensor, owners: torch.Tensor, numbers: StepNumbers
    ) -> torch.Tensor:
        """``[r, hidden]``, guidance applied.

        The official code combines logits. The head is linear, so hidden states do as
        well, at half the products.

        Args:
            rows: ``[r]``, int64, in the batch.
            owners: ``[r]``, int64: the place of each one's request in the batch.
        """
        assert self.hidden_states is not None
        hidden_states = self.hidden_states[rows]
        if not self.is_guided:
            return hidden_states
        twins = self.hidden_states[rows + numbers.twin[owners]]
        scales = np.array([r.cfg_scale + 1 for r in self.requests], np.float32)
        weights = async_tensor_h2d(scales, device=rows.device)[owners]
        guided = torch.lerp(twins.float(), hidden_states.float(), weights[:, None])
        return guided.to(hidden_states.dtype)
