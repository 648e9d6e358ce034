# SPDX-License-Identifier: Apache-2.0
"""The end of a step: from hidden states to the next canvas, and what of it is the
answer so far.

Logits are computed here, not in vLLM's runner: only for the masks that this step may
transfer. All of it is queued on the device; the host waits for nothing, except where a
client asks for log-probabilities or an observer looks on.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.output import SamplerOutput

from vllm_lladav.denoising.canvas import Batch, Canvases
from vllm_lladav.denoising.official_order import settle
from vllm_lladav.denoising.traits import Traits
from vllm_lladav.worker.batch_step import BatchStep
from vllm_lladav.worker.contract import DenoisingModel
from vllm_lladav.worker.drawing import Drawing
from vllm_lladav.worker.ending_step import EndingStep
from vllm_lladav.worker.frames import Frames
from vllm_lladav.worker.predictor import Predictor
from vllm_lladav.worker.step_output import packed


class DenoisingSampler:
    """Takes the place of vLLM's sampler (``ModelState.custom_sampler``).

    Args:
        traits: of the checkpoint.
        canvases: of all running requests.
        take_step: the step whose forward pass just ran; None in warm-up runs.

    Attributes:
        has_official_order: whether equal confidences, and steps with fewer candidates
            than transfers, come out as in the official code on a CPU. Else the lower
            position goes first, and no more go than there are candidates.
    """

    # What the runner reads of its sampler.
    compute_nans = False
    penalties_state = SimpleNamespace(output_bin_counts=None)

    def __init__(
        self,
        model: DenoisingModel,
        traits: Traits,
        device: torch.device,
        canvases: Canvases,
        take_step: Callable[[], BatchStep | None],
    ) -> None:
        self._device = device
        # Asking the canvases costs nothing on a CPU.
        self.has_official_order = device.type == "cpu"
        self._canvases = canvases
        self._predictor = Predictor(model, traits, device)
        self._vocab_size = traits.num_tokens
        self._take_step = take_step
        self._drawing: tuple[Batch, Drawing] | None = None

    def add_request(self, req_idx: int, sampling_params: Any) -> None:
        """Called by vLLM's runner; the worker's state knows the request already."""

    def apply_staged_writes(self) -> None:
        """Called by vLLM's runner; nothing is staged here."""

    def __call__(self, logits: torch.Tensor, input_batch: InputBatch) -> SamplerOutput:
        """End the denoising step of every request in the batch.

        ``logits`` are the hidden states of vLLM's choice of rows
        (``compute_logits`` of the model passes them through), used in warm-up
        runs only.
        """
        step = self._take_step()
        if step is None:
            # As much as a step has of them at once: memory is being measured.
            self._predictor.warm_up(logits[:1])
            nothing = np.zeros(input_batch.num_reqs, np.int32)
            counts = async_tensor_h2d(nothing, device=self._device)
            return SamplerOutput(counts[:, None], None, None, counts, counts)
        num_seen = input_batch.num_computed_tokens_np[: len(step.requests)]
        num_seen = num_seen + input_batch.num_scheduled_tokens
        ending = EndingStep(
            step, self._canvases, self._predictor, self._drawing_of(step), num_seen
        )
        ending.observe()
        frames = Frames.of(step.requests, ending.canvas)
        ranking = ending.transfer()
        if self.has_official_order:
            settle(ending.canvas, ranking, ending.layout, ending.predict_more)
        ending.record_logprobs(ranking.chosen)
        ending.canvas.advance()
        emitted = ending.canvas.emit()
        pruned = [request.take_prune_report() for request in step.requests]
        tokens, counts = packed(ending.canvas, emitted, pruned)
        return SamplerOutput(
            sampled_token_ids=tokens,
            logprobs_tensors=ending.take_logprobs(emitted),
            num_nans=None if frames is None else frames.packed(ending.canvas),
            num_sampled=counts,
            # What the next step computes anew counts as rejected, which leaves the
            # runner's number of computed tokens at those before it.
            num_rejected=ending.report(),
        )

    def _drawing_of(self, step: BatchStep) -> Drawing:
        """Made anew only where other requests run than before."""
        if self._drawing is None or self._drawing[0] is not step.batch:
            all_params = [request.params for request in step.requests]
            drawing = Drawing(step.batch, all_params, self._vocab_size)
            self._drawing = step.batch, drawing
        return self._drawing[1]
