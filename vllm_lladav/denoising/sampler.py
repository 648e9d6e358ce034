# SPDX-License-Identifier: Apache-2.0
"""From hidden states to the next canvas, and what of it is the answer so far.

Logits are computed here, not in vLLM's runner: only for the masks that this
step may transfer, and in tiles of bounded size.
"""

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.output import SamplerOutput

from vllm_lladav.denoising.marks import StepReport
from vllm_lladav.denoising.params import DenoisingParams
from vllm_lladav.denoising.unmasking import (
    chosen_probability,
    greedy_tokens,
    gumbel_tokens,
)

if TYPE_CHECKING:
    from vllm_lladav.denoising.state import (
        DenoisingRequest,
        DenoisingState,
        DenoisingStep,
    )
    from vllm_lladav.model.lladav import LlavaLLaDAModelLM

LOGITS_TILE_BYTES = 32 << 20
"""Float32 logits that exist at once; 66 rows of the official vocabulary."""


class _Turn(NamedTuple):
    """A request in the step that ends.

    Attributes:
        origin: row of its position 0 in the step's hidden states.
        candidates: ``[n]``, int64, positions that may be transferred.
    """

    request: "DenoisingRequest"
    origin: int
    candidates: np.ndarray


class DenoisingSampler:
    """Takes the place of vLLM's sampler (``ModelState.custom_sampler``)."""

    # What the runner reads of its sampler.
    compute_nans = False
    penalties_state = SimpleNamespace(output_bin_counts=None)

    def __init__(self, state: "DenoisingState") -> None:
        self._state = state
        self._model = cast("LlavaLLaDAModelLM", state.model)
        config = state.model_config.hf_config
        self._vocab_size = config.tokenizer_length
        banned = [i for i in config.banned_token_ids if i < self._vocab_size]
        padding = range(self._vocab_size, self._model.padded_vocab_size)
        self._not_words = torch.tensor(
            [*banned, *padding], dtype=torch.int64, device=state.device
        )
        self._tile_rows = max(1, LOGITS_TILE_BYTES // (4 * self._vocab_size))

    def add_request(self, req_idx: int, sampling_params: Any) -> None:
        """The state has all that is needed."""

    def apply_staged_writes(self) -> None:
        """Nothing is staged."""

    def __call__(self, logits: torch.Tensor, input_batch: InputBatch) -> SamplerOutput:
        """End the denoising step of every request in the batch.

        ``logits`` are the hidden states of vLLM's choice of rows
        (``compute_logits`` of the model passes them through), used in warm-up
        runs only.
        """
        step = self._state.take_step()
        if step is None:
            self._predict(logits[: self._tile_rows], [(None, len(logits))])
            outputs: list[list[int]] = [[] for _ in range(input_batch.num_reqs)]
            num_kept = np.zeros(input_batch.num_reqs, np.int32)
        else:
            outputs = self._unmask(step)
            num_kept = np.array([r.computed.first for r in step.requests], np.int32)
        return self._pack(outputs, num_kept, input_batch)

    def _unmask(self, step: "DenoisingStep") -> list[list[int]]:
        turns = [
            _Turn(request, origin, request.canvas.candidates(request.layout.first))
            for request, origin in zip(step.requests, step.origins(), strict=True)
            # A request may have ended while this step was already scheduled.
            if not request.canvas.finished
        ]
        if not turns:
            return [[] for _ in step.requests]
        tokens, confidence = self._predict_rows(
            step,
            np.concatenate([turn.origin + turn.candidates for turn in turns]),
            [(turn.request, len(turn.candidates)) for turn in turns],
        )
        outputs = {}
        offset = 0
        for turn in turns:
            part = slice(offset, offset + len(turn.candidates))
            offset = part.stop
            outputs[turn.request.req_id] = self._transfer(
                step, turn, tokens[part], confidence[part]
            )
        return [outputs.get(request.req_id, []) for request in step.requests]

    def _transfer(
        self,
        step: "DenoisingStep",
        turn: "_Turn",
        tokens: np.ndarray,
        confidence: torch.Tensor,
    ) -> list[int]:
        """End one request's step, given ``tokens`` (``[n]``) and ``confidence``
        (``[n]``) of its candidates; returns what the scheduler is told."""
        request = turn.request
        canvas = request.canvas
        if canvas.params.remasking == "random":
            confidence = _random_confidence(request, len(confidence))
        transferred = canvas.transfer(
            turn.candidates,
            tokens,
            confidence,
            partial(self._predict_tokens, step, request, turn.origin),
            request.layout,
        )
        in_prompt = transferred[transferred < canvas.prompt_len]
        if len(in_prompt):
            self._state.overwrite_prompt(request, in_prompt)
        follows_blocks = request.plan.follows_blocks
        report = StepReport(
            pruned=request.take_prune_report(),
            block=canvas.index.block if follows_blocks else None,
            stop=canvas.index.stop if follows_blocks else None,
        )
        return report.append_to(canvas.take_output())

    def _predict_tokens(
        self,
        step: "DenoisingStep",
        request: "DenoisingRequest",
        origin: int,
        positions: np.ndarray,
    ) -> np.ndarray:
        """Tokens at ``positions`` (``[n]``) of one request whose position 0 is at the
        row ``origin``: ``[n]``, int64."""
        segments = [(request, len(positions))]
        return self._predict_rows(step, origin + positions, segments)[0]

    def _predict_rows(
        self,
        step: "DenoisingStep",
        rows: np.ndarray,
        segments: "list[tuple[DenoisingRequest, int]]",
    ) -> tuple[np.ndarray, torch.Tensor]:
        """Predict at rows of the batch, and fetch the result.

        Returns:
            Tokens ``[n]`` (int64) and confidence ``[n]`` (float64), on the CPU.
        """
        assert step.hidden_states is not None
        hidden_states = step.hidden_states[self._to_device(rows)]
        if any(request.num_sequences > 1 for request, _ in segments):
            hidden_states = self._guided(step, rows, segments, hidden_states)
        tokens, confidence = self._predict(hidden_states, segments)
        return tokens.cpu().numpy(), confidence.cpu()

    def _guided(
        self,
        step: "DenoisingStep",
        rows: np.ndarray,
        segments: "list[tuple[DenoisingRequest, int]]",
        hidden_states: torch.Tensor,
    ) -> torch.Tensor:
        """Apply guidance to ``hidden_states`` (``[n, hidden]``) at ``rows``.

        The official code combines logits. The head is linear, so hidden states do as
        well, at half the products.
        """
        assert step.hidden_states is not None
        counts = [count for _, count in segments]
        offsets, weights = zip(
            *(
                (len(request), request.cfg_scale + 1)
                if request.num_sequences > 1
                else (0, 1.0)
                for request, _ in segments
            ),
            strict=True,
        )
        twins = step.hidden_states[self._to_device(rows + np.repeat(offsets, counts))]
        weight = async_tensor_h2d(
            np.repeat(weights, counts)[:, None],
            device=self._state.device,
            dtype=torch.float32,
        )
        guided = torch.lerp(twins.float(), hidden_states.float(), weight)
        return guided.to(hidden_states.dtype)

    def _to_device(self, rows: np.ndarray) -> torch.Tensor:
        return async_tensor_h2d(rows, device=self._state.device, dtype=torch.int64)

    def _predict(
        self,
        hidden_states: torch.Tensor,
        segments: "Sequence[tuple[DenoisingRequest | None, int]]",
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict a token and its confidence for every row.

        Args:
            hidden_states: ``[n, hidden]``.
            segments: whose rows these are: (request, number of rows), in order.

        Returns:
            Tokens ``[n]`` (int64) and confidence ``[n]`` (float64).
        """
        num_rows = len(hidden_states)
        if num_rows == 0:
            device = self._state.device
            return (
                torch.empty(0, dtype=torch.int64, device=device),
                torch.empty(0, dtype=torch.float64, device=device),
            )
        owners = [owner for owner, count in segments for _ in range(count)]
        # Of even sizes: a product with a few rows costs as much as one with many.
        tiles = torch.arange(num_rows).tensor_split(-(-num_rows // self._tile_rows))
        predictions = []
        for tile in tiles:
            rows = slice(int(tile[0]), int(tile[-1]) + 1)
            predictions.append(self._predict_tile(hidden_states[rows], owners[rows]))
        tokens, confidence = zip(*predictions, strict=True)
        return torch.cat(tokens), torch.cat(confidence)

    def _predict_tile(
        self,
        hidden_states: torch.Tensor,
        owners: "Sequence[DenoisingRequest | None]",
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`_predict`, for at most as many rows as a tile has."""
        logits = self._model.compute_vocab_logits(hidden_states)
        logits.index_fill_(-1, self._not_words, float("-inf"))
        best = chosen = greedy_tokens(logits)
        noisy = [
            (row, owner)
            for row, owner in enumerate(owners)
            if owner is not None and owner.canvas.params.temperature > 0
        ]
        if noisy:
            chosen = best.clone()
        for row, owner in noisy:
            words = logits[row : row + 1, : self._vocab_size]
            words = _restricted(words, owner.canvas.params)
            noise = torch.empty_like(words, dtype=torch.float64)
            noise.uniform_(generator=owner.generator)
            chosen[row] = gumbel_tokens(words, owner.canvas.params.temperature, noise)
        return chosen, chosen_probability(logits, best, chosen)

    def _pack(
        self,
        outputs: list[list[int]],
        num_kept: np.ndarray,
        input_batch: InputBatch,
    ) -> SamplerOutput:
        """As vLLM expects it: ``[num_reqs, width]`` tokens and counts.

        ``num_kept`` are the tokens of each request whose K/V its next step reads.
        """
        device = self._state.device
        counts = np.array([len(output) for output in outputs], np.int32)
        sampled = np.zeros((len(outputs), max(1, counts.max(initial=0))), np.int32)
        for row, output in zip(sampled, outputs, strict=True):
            row[: len(output)] = output
        # Tokens that the next step computes anew are "rejected", which leaves the
        # runner's number of computed tokens at those that it does not.
        num_seen = input_batch.num_computed_tokens_np[: len(outputs)]
        num_seen = num_seen + input_batch.num_scheduled_tokens
        num_rejected = (num_seen - num_kept).astype(np.int32)
        return SamplerOutput(
            sampled_token_ids=async_tensor_h2d(sampled, device=device),
            logprobs_tensors=None,
            num_nans=None,
            num_sampled=async_tensor_h2d(counts, device=device),
            num_rejected=async_tensor_h2d(num_rejected, device=device),
        )


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


def _random_confidence(request: "DenoisingRequest", count: int) -> torch.Tensor:
    """``[count]``, float64, on the CPU."""
    generator = request.generator
    assert generator is not None
    return torch.rand(
        count, dtype=torch.float64, device=generator.device, generator=generator
    ).cpu()
