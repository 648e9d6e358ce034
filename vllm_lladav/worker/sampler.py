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
from vllm.v1.outputs import LogprobsTensors
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
from vllm_lladav.model.family import traits_of
from vllm_lladav.worker.logprobs import TokenLogprobs, packed, token_logprobs
from vllm_lladav.worker.request import DenoisingRequest, DenoisingStep

if TYPE_CHECKING:
    from vllm_lladav.model.lladav.model import LlavaLLaDAModelLM
    from vllm_lladav.worker.state import DenoisingState

LOGITS_TILE_BYTES = 32 << 20
"""Float32 logits that exist at once; 66 rows of the official vocabulary."""


class _Turn(NamedTuple):
    """A request in the step that ends.

    Attributes:
        origin: row of its position 0 in the step's hidden states.
        length: of its sequences, in rows; the unconditional twin follows the request.
        candidates: ``[n]``, int64, positions that may be transferred.
    """

    request: DenoisingRequest
    origin: int
    length: int
    candidates: np.ndarray


class DenoisingSampler:
    """Takes the place of vLLM's sampler (``ModelState.custom_sampler``)."""

    # What the runner reads of its sampler.
    compute_nans = False
    penalties_state = SimpleNamespace(output_bin_counts=None)

    def __init__(self, state: "DenoisingState") -> None:
        self._state = state
        self._model = cast("LlavaLLaDAModelLM", state.model)
        traits = traits_of(state.model_config)
        self._vocab_size = traits.num_tokens
        padding = range(self._vocab_size, self._model.padded_vocab_size)
        self._not_words = torch.tensor(
            [*traits.banned_token_ids, *padding], dtype=torch.int64, device=state.device
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
            logprobs = None
            num_kept = np.zeros(input_batch.num_reqs, np.int32)
        else:
            outputs, logprobs = self._unmask(step)
            num_kept = np.array([r.computed.first for r in step.requests], np.int32)
        return self._pack(outputs, logprobs, num_kept, input_batch)

    def _unmask(
        self, step: DenoisingStep
    ) -> tuple[list[list[int]], LogprobsTensors | None]:
        """What the scheduler is told of each request, and log-probabilities."""
        turns = [
            _Turn(
                request,
                origin,
                len(request),
                request.canvas.candidates(request.layout.first),
            )
            for request, origin in zip(step.requests, step.origins(), strict=True)
            # A request may have ended while this step was already scheduled.
            if not request.canvas.finished
        ]
        if not turns:
            return [[] for _ in step.requests], None
        self._report_steps(turns)
        counts = [len(turn.candidates) for turn in turns]
        tokens, confidence = self._predict_rows(
            step,
            np.concatenate([turn.origin + turn.candidates for turn in turns]),
            list(zip(turns, counts, strict=True)),
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

    def _report_steps(self, turns: Sequence[_Turn]) -> None:
        """Tell an observer, if there is one."""
        on_step = self._state.on_step
        if on_step is None:
            return
        for turn in turns:
            canvas, candidates = turn.request.canvas, turn.candidates
            num_masks = len(canvas.masks())
            on_step(turn.request.req_id, canvas.index, len(candidates), num_masks)

    def _transfer(
        self,
        step: DenoisingStep,
        turn: _Turn,
        tokens: np.ndarray,
        confidence: torch.Tensor,
    ) -> np.ndarray:
        """End one request's step, given ``tokens`` (``[n]``) and ``confidence``
        (``[n]``) of its candidates; returns the positions transferred (``[k]``)."""
        request = turn.request
        canvas = request.canvas
        if canvas.params.remasking == "random":
            confidence = _random_confidence(request, len(confidence))
        transferred = canvas.transfer(
            turn.candidates,
            tokens,
            confidence,
            partial(self._predict_tokens, step, turn),
            request.layout,
        )
        in_prompt = transferred[transferred < canvas.prompt_len]
        if len(in_prompt):
            self._state.overwrite_prompt(request, in_prompt)
        return transferred

    def _record_logprobs(
        self, step: DenoisingStep, transferred: list[tuple[_Turn, np.ndarray]]
    ) -> None:
        """Keep log-probabilities of what this step unmasked, where asked for.

        The head runs again for these few rows: keeping the most likely tokens of
        every candidate would cost more.
        """
        parts = []
        for turn, positions in transferred:
            places = positions - turn.request.canvas.prompt_len
            if turn.request.logprobs is not None and (places >= 0).any():
                parts.append((turn, turn.request.logprobs, places[places >= 0]))
        if not parts:
            return
        rows = [
            turn.origin + turn.request.canvas.prompt_len + places
            for turn, _, places in parts
        ]
        hidden_states = self._hidden_states(
            step,
            np.concatenate(rows),
            [(turn, len(places)) for turn, _, places in parts],
        )
        tokens = np.concatenate(
            [turn.request.canvas.generated[places] for turn, _, places in parts]
        )
        num_top = max(kept.num_top for _, kept, _ in parts)
        tiles = [
            token_logprobs(
                self._logits(hidden_states[tile]),
                self._to_device(tokens[tile]),
                num_top,
            )
            for tile in self._tiles(len(tokens))
        ]
        found = TokenLogprobs(*map(np.concatenate, zip(*tiles, strict=True)))
        offset = 0
        for _, kept, places in parts:
            part = slice(offset, offset + len(places))
            offset = part.stop
            kept.record(places, TokenLogprobs(*(values[part] for values in found)))

    def _predict_tokens(
        self, step: DenoisingStep, turn: _Turn, positions: np.ndarray
    ) -> np.ndarray:
        """Tokens at ``positions`` (``[n]``) of one request: ``[n]``, int64."""
        segments = [(turn, len(positions))]
        return self._predict_rows(step, turn.origin + positions, segments)[0]

    def _predict_rows(
        self,
        step: DenoisingStep,
        rows: np.ndarray,
        segments: list[tuple[_Turn, int]],
    ) -> tuple[np.ndarray, torch.Tensor]:
        """Predict at rows of the batch, and fetch the result.

        Returns:
            Tokens ``[n]`` (int64) and confidence ``[n]`` (float64), on the CPU.
        """
        tokens, confidence = self._predict(
            self._hidden_states(step, rows, segments),
            [(turn.request, count) for turn, count in segments],
        )
        return tokens.cpu().numpy(), confidence.cpu()

    def _hidden_states(
        self,
        step: DenoisingStep,
        rows: np.ndarray,
        segments: list[tuple[_Turn, int]],
    ) -> torch.Tensor:
        """``[n, hidden]`` at ``rows``, guidance applied.

        The official code combines logits. The head is linear, so hidden states do as
        well, at half the products.
        """
        assert step.hidden_states is not None
        hidden_states = step.hidden_states[self._to_device(rows)]
        if all(turn.request.num_sequences == 1 for turn, _ in segments):
            return hidden_states
        counts = [count for _, count in segments]
        offsets = [
            turn.length if turn.request.num_sequences == 2 else 0
            for turn, _ in segments
        ]
        weights = [turn.request.cfg_scale + 1 for turn, _ in segments]
        twins = step.hidden_states[self._to_device(rows + np.repeat(offsets, counts))]
        weight = async_tensor_h2d(
            np.repeat(weights, counts)[:, None],
            device=self._state.device,
            dtype=torch.float32,
        )
        guided = torch.lerp(twins.float(), hidden_states.float(), weight)
        return guided.to(hidden_states.dtype)

    def _to_device(self, numbers: np.ndarray) -> torch.Tensor:
        return async_tensor_h2d(numbers, device=self._state.device, dtype=torch.int64)

    def _tiles(self, num_rows: int) -> list[slice]:
        """Of even sizes: a product with a few rows costs as much as one with many."""
        tiles = torch.arange(num_rows).tensor_split(-(-num_rows // self._tile_rows))
        return [slice(int(tile[0]), int(tile[-1]) + 1) for tile in tiles]

    def _logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """``[n, padded vocabulary]``, float32; -inf where no word may stand."""
        logits = self._model.compute_vocab_logits(hidden_states)
        return logits.index_fill_(-1, self._not_words, float("-inf"))

    def _predict(
        self,
        hidden_states: torch.Tensor,
        segments: Sequence[tuple[DenoisingRequest | None, int]],
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
        predictions = [
            self._predict_tile(hidden_states[tile], owners[tile])
            for tile in self._tiles(num_rows)
        ]
        tokens, confidence = zip(*predictions, strict=True)
        return torch.cat(tokens), torch.cat(confidence)

    def _predict_tile(
        self,
        hidden_states: torch.Tensor,
        owners: Sequence[DenoisingRequest | None],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`_predict`, for at most as many rows as a tile has."""
        logits = self._logits(hidden_states)
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
        logprobs: LogprobsTensors | None,
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
            logprobs_tensors=logprobs,
            num_nans=None,
            num_sampled=async_tensor_h2d(counts, device=device),
            num_rejected=async_tensor_h2d(num_rejected, device=device),
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


def _random_confidence(request: DenoisingRequest, count: int) -> torch.Tensor:
    """``[count]``, float64, on the CPU."""
    generator = request.generator
    assert generator is not None
    return torch.rand(
        count, dtype=torch.float64, device=generator.device, generator=generator
    ).cpu()
