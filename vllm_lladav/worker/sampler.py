# SPDX-License-Identifier: Apache-2.0
"""The end of a step: from hidden states to the next canvas, and what of it is the
answer so far.

Logits are computed here, not in vLLM's runner: only for the masks that this step may
transfer.
"""

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.output import SamplerOutput

from vllm_lladav.denoising.marks import StepReport
from vllm_lladav.denoising.noise import row_keys, uniform_of
from vllm_lladav.denoising.traits import Traits
from vllm_lladav.worker.batch_step import BatchStep, Places, Turn
from vllm_lladav.worker.contract import DenoisingModel
from vllm_lladav.worker.logprobs import TokenLogprobs, packed
from vllm_lladav.worker.predictor import Predictor, RowSampling
from vllm_lladav.worker.request import DenoisingRequest


class DenoisingSampler:
    """Takes the place of vLLM's sampler (``ModelState.custom_sampler``).

    Args:
        traits: of the checkpoint.
        take_step: the step whose forward pass just ran; None in warm-up runs.
    """

    # What the runner reads of its sampler.
    compute_nans = False
    penalties_state = SimpleNamespace(output_bin_counts=None)

    def __init__(
        self,
        model: DenoisingModel,
        traits: Traits,
        device: torch.device,
        take_step: Callable[[], BatchStep | None],
    ) -> None:
        self._model = model
        self._device = device
        self._vocab_size = traits.num_tokens
        self._predictor = Predictor(model, traits, device)
        self._take_step = take_step

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
            outputs: list[list[int]] = [[] for _ in range(input_batch.num_reqs)]
            logprobs = None
            num_computed = np.zeros(input_batch.num_reqs, np.int32)
        else:
            outputs, logprobs = self._unmask(step)
            num_computed = np.array(
                [request.next_step().computed.first for request in step.requests],
                np.int32,
            )
        return self._pack(outputs, logprobs, num_computed, input_batch)

    def _unmask(
        self, step: BatchStep
    ) -> tuple[list[list[int]], LogprobsTensors | None]:
        """What the scheduler is told of each request, and log-probabilities."""
        turns = step.turns()
        if not turns:
            return [[] for _ in step.requests], None
        if step.on_step is not None:
            for request, _, candidates in turns:
                num_masks = len(request.canvas.masks())
                index = request.canvas.index
                step.on_step(request.req_id, index, len(candidates), num_masks)
        counts = [len(turn.candidates) for turn in turns]
        tokens, confidence = self._predict(
            step, [(turn, turn.candidates) for turn in turns]
        )
        parts = zip(
            turns,
            np.split(tokens, np.cumsum(counts)[:-1]),
            confidence.split(counts),
            strict=True,
        )
        transferred = [
            (turn, self._transfer(step, turn, tokens, confidence))
            for turn, tokens, confidence in parts
        ]
        self._record_logprobs(step, transferred)
        answers = {turn.request.req_id: _answer(turn.request) for turn in turns}
        nothing: tuple[list[int], TokenLogprobs | None] = [], None
        outputs, logprobs = zip(
            *(answers.get(request.req_id, nothing) for request in step.requests),
            strict=True,
        )
        return list(outputs), packed(logprobs)

    def _predict(
        self, step: BatchStep, places: Places
    ) -> tuple[np.ndarray, torch.Tensor]:
        """Tokens ``[n]`` (int64) and confidence ``[n]`` (float64) at all of
        ``places``, on the CPU."""
        greedy = [place for place in places if not _is_sampled(place[0])]
        sampled = [place for place in places if _is_sampled(place[0])]
        predictions = []
        if greedy:
            predictions.append(self._predictor.predict(step.hidden_at(greedy), None))
        if sampled:
            sampling = self._row_sampling(sampled)
            hidden_states = step.hidden_at(sampled)
            predictions.append(self._predictor.predict(hidden_states, sampling))
        tokens, confidence = map(torch.cat, zip(*predictions, strict=True))
        # One copy: each is a wait for the device.
        numbers = torch.stack([tokens, confidence.view(torch.int64)]).cpu()
        # The sampled rows are behind the others: back to where they were.
        counts = [len(positions) for _, positions in places]
        order = np.repeat([_is_sampled(turn) for turn, _ in places], counts)
        found = np.empty_like(numbers.numpy())
        found[:, np.argsort(order, kind="stable")] = numbers.numpy()
        return found[0], torch.from_numpy(found[1]).view(torch.float64)

    def _row_sampling(self, places: Places) -> RowSampling:
        """Of all rows of ``places``, whose requests have a temperature."""
        counts = [len(positions) for _, positions in places]
        params = [turn.request.params for turn, _ in places]

        def rows(values: Sequence[float], dtype: torch.dtype) -> torch.Tensor:
            numbers = np.repeat(np.array(values), counts)
            return async_tensor_h2d(numbers, device=self._device, dtype=dtype)

        size = self._vocab_size
        keys = np.concatenate([_row_keys(turn, at).numpy() for turn, at in places])
        return RowSampling(
            temperature=rows([p.temperature for p in params], torch.float64),
            top_k=rows([min(p.top_k or size, size) for p in params], torch.int32),
            top_p=rows([p.top_p for p in params], torch.float32),
            keys=async_tensor_h2d(keys, device=self._device, dtype=torch.int64),
            restricts=any(p.top_k > 0 or p.top_p < 1 for p in params),
        )

    def _predict_tokens(
        self, step: BatchStep, turn: Turn, positions: np.ndarray
    ) -> np.ndarray:
        """Tokens at ``positions`` (``[n]``) of one request: ``[n]``, int64."""
        return self._predict(step, [(turn, positions)])[0]

    def _transfer(
        self,
        step: BatchStep,
        turn: Turn,
        tokens: np.ndarray,
        confidence: torch.Tensor,
    ) -> np.ndarray:
        """End one request's step, given ``tokens`` (``[n]``) and ``confidence``
        (``[n]``) of its candidates; returns the positions transferred (``[k]``)."""
        request = turn.request
        canvas = request.canvas
        if request.params.remasking == "random":
            confidence = uniform_of(_row_keys(turn, turn.candidates))
        transferred = canvas.transfer(
            turn.candidates,
            tokens,
            confidence,
            partial(self._predict_tokens, step, turn),
            request.step.layout,
        )
        in_prompt = transferred[transferred < canvas.prompt_len]
        if len(in_prompt):
            request.overwrite_prompt(in_prompt, self._model)
        return transferred

    def _record_logprobs(self, step: BatchStep, transferred: Places) -> None:
        """Keep log-probabilities of what this step unmasked, where asked for.

        The head runs again for these few rows: keeping the most likely tokens of
        every candidate would cost more.
        """
        unmasked = []
        for turn, positions in transferred:
            positions = positions[positions >= turn.request.canvas.prompt_len]
            if turn.request.logprobs is not None and len(positions):
                unmasked.append((turn, positions, turn.request.logprobs))
        if not unmasked:
            return
        tokens = [turn.request.canvas.token_ids[places] for turn, places, _ in unmasked]
        found = self._predictor.logprobs(
            step.hidden_at([(turn, positions) for turn, positions, _ in unmasked]),
            np.concatenate(tokens),
            max(kept.num_top for _, _, kept in unmasked),
        )
        offset = 0
        for turn, positions, kept in unmasked:
            part = slice(offset, offset + len(positions))
            offset = part.stop
            kept.record(
                positions - turn.request.canvas.prompt_len,
                TokenLogprobs(*(values[part] for values in found)),
            )

    def _pack(
        self,
        outputs: Sequence[list[int]],
        logprobs: LogprobsTensors | None,
        num_computed: np.ndarray,
        input_batch: InputBatch,
    ) -> SamplerOutput:
        """As vLLM expects it: ``[num_reqs, width]`` tokens and counts.

        ``num_computed`` are the tokens of each request before those that its next
        step computes: ``[num_reqs]``, int32.
        """
        counts = np.array([len(output) for output in outputs], np.int32)
        sampled = np.zeros((len(outputs), max(1, counts.max(initial=0))), np.int32)
        for row, output in zip(sampled, outputs, strict=True):
            row[: len(output)] = output
        # Tokens that the next step computes anew are "rejected", which leaves the
        # runner's number of computed tokens at those that it does not.
        num_seen = input_batch.num_computed_tokens_np[: len(outputs)]
        num_seen = num_seen + input_batch.num_scheduled_tokens
        num_rejected = (num_seen - num_computed).astype(np.int32)
        return SamplerOutput(
            sampled_token_ids=async_tensor_h2d(sampled, device=self._device),
            logprobs_tensors=logprobs,
            num_nans=None,
            num_sampled=async_tensor_h2d(counts, device=self._device),
            num_rejected=async_tensor_h2d(num_rejected, device=self._device),
        )


def _answer(request: DenoisingRequest) -> tuple[list[int], TokenLogprobs | None]:
    """What the scheduler is told of a request whose step is done, and the
    log-probabilities of the answer tokens in it."""
    canvas = request.canvas
    first = canvas.num_emitted
    output = canvas.take_output()
    logprobs = None
    if request.logprobs is not None:
        behind = output[canvas.num_emitted - first :]
        suffix = [token_id for token_id in behind if token_id >= 0]
        logprobs = request.logprobs.emitted(first, canvas.num_emitted, suffix)
    follows_blocks = request.plan.follows_blocks
    report = StepReport(
        pruned=request.take_prune_report(),
        block=canvas.index.block if follows_blocks else None,
        stop=canvas.index.stop if follows_blocks else None,
    )
    return report.append_to(output), logprobs


def _is_sampled(turn: Turn) -> bool:
    return turn.request.params.temperature > 0


def _row_keys(turn: Turn, positions: np.ndarray) -> torch.Tensor:
    """Of the noise at ``positions`` (``[n]``) in this step: ``[n]``, int64, on the
    CPU."""
    request = turn.request
    assert request.seed is not None
    return row_keys(
        torch.tensor([request.seed]),
        torch.tensor([request.step.index.step]),
        torch.from_numpy(positions - request.canvas.prompt_len),
    )
