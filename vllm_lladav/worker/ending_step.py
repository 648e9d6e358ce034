# SPDX-License-Identifier: Apache-2.0
"""A step whose forward pass is done: what its hidden states make of the canvases.

All of it is queued on the device. The host waits for it only where a client asks for
log-probabilities, where an observer looks on, and on a CPU, where there is no queue.
"""

import numpy as np
import torch
from vllm.v1.outputs import LogprobsTensors

from vllm_lladav.denoising.canvas import Canvases
from vllm_lladav.denoising.canvas_step import CanvasStep, Emitted
from vllm_lladav.denoising.official_order import Layout
from vllm_lladav.denoising.plan import StepIndex
from vllm_lladav.denoising.unmasking import Ranking
from vllm_lladav.worker.batch_step import BatchStep
from vllm_lladav.worker.device_report import DeviceReport
from vllm_lladav.worker.drawing import CanvasRows, Drawing
from vllm_lladav.worker.logprobs import TokenLogprobs, packed
from vllm_lladav.worker.predictor import Predictions, Predictor


class EndingStep:
    """
    Args:
        drawing: of the step's requests.
        num_seen: tokens that vLLM counts as computed of each request: ``[n]``.
    """

    def __init__(
        self,
        step: BatchStep,
        canvases: Canvases,
        predictor: Predictor,
        drawing: Drawing,
        num_seen: np.ndarray,
    ) -> None:
        self._step = step
        self._predictor = predictor
        self._drawing = drawing
        self._numbers = step.numbers(num_seen)
        self._follows_blocks = step.batch.follows_blocks
        first = self._numbers.first if self._follows_blocks else None
        self.canvas = CanvasStep(canvases, step.batch, first)
        self._rows = step.column_rows(self._numbers)  # [n, w]

    def observe(self) -> None:
        """Tell the step's observer."""
        if self._step.on_step is None:
            return
        canvas, moving = self.canvas, self.canvas.moving
        masks = (canvas.tokens == canvas.mask_token_id) & self._step.batch.in_canvas
        numbers = (
            canvas.was_running,
            moving.step,
            moving.block,
            moving.step_in_block,
            moving.stop,
            canvas.candidates.sum(dim=1),
            masks.sum(dim=1),
        )
        rows = torch.stack(numbers, dim=1).tolist()
        for request, row in zip(self._step.requests, rows, strict=True):
            is_running, number, block, step_in_block, stop, num_candidates, left = row
            stands = stop if stop < request.params.gen_length else None
            index = StepIndex(number, block, step_in_block, stands)
            if is_running:
                self._step.on_step(request.req_id, index, num_candidates, left)

    def transfer(self) -> Ranking:
        """Predict the candidates and unmask the most confident ones."""
        most = np.array([request.most_candidates for request in self._step.requests])
        parts = []
        for is_drawn in (False, True):
            size = int(most[self._drawing.is_drawn == is_drawn].sum())
            if not size:
                continue
            candidates = self._drawing.of(self.canvas.candidates, is_drawn)
            # Of known size: the host need not wait for the device.
            places = candidates.flatten().nonzero_static(size=size, fill_value=-1)
            parts.append((places[:, 0], *self._predict(places[:, 0], is_drawn)))
        if not parts:  # All of them had ended.
            nothing = torch.empty(0, dtype=torch.int64, device=self._rows.device)
            parts.append((nothing, nothing, nothing.double()))
        places, tokens, confidence = map(torch.cat, zip(*parts, strict=True))
        return self.canvas.transfer(places, tokens, confidence, int(most.max()))

    def layout(self, row: int) -> Layout:
        """Of one request, by its place in the batch; for the official order."""
        request = self._step.requests[row]
        first = request.prompt_len
        tail = torch.arange(first, first + request.params.num_tail_tokens)
        return Layout(request.step.layout, torch.cat([request.prompt_masks, tail]))

    def predict_more(self, row: int, columns: torch.Tensor) -> torch.Tensor:
        """Tokens at ``columns`` (``[k]``) of one request: ``[k]``, int64."""
        places = row * self._rows.shape[1] + columns
        return self._predict(places, bool(self._drawing.is_drawn[row])).tokens

    def record_logprobs(self, chosen: torch.Tensor) -> None:
        """Keep log-probabilities of what this step unmasked (``[n, w]``, bool), where
        asked for.

        The head runs again for these few rows: keeping the most likely tokens of
        every candidate would cost more.
        """
        requests, batch = self._step.requests, self._step.batch
        asked = [index for index, r in enumerate(requests) if r.logprobs is not None]
        if not asked:
            return
        is_asked = torch.zeros_like(chosen)
        is_asked[asked] = True
        owners, columns = (chosen & batch.in_canvas & is_asked).nonzero(as_tuple=True)
        if not len(owners):
            return
        found = self._predictor.logprobs(
            self._step.hidden_at(self._rows[owners, columns], owners, self._numbers),
            self.canvas.tokens[owners, columns],
            max(r.logprobs.num_top for r in requests if r.logprobs is not None),
        )
        offsets = columns - batch.fixed.num_prompt_masks[owners]
        places, owner = offsets.cpu().numpy(), owners.cpu().numpy()
        for index in asked:
            rows, kept = owner == index, requests[index].logprobs
            assert kept is not None
            kept.record(
                places[rows], TokenLogprobs(*(values[rows] for values in found))
            )

    def take_logprobs(self, emitted: Emitted) -> LogprobsTensors | None:
        """Of what the canvases emitted, where asked for."""
        requests = self._step.requests
        if all(request.logprobs is None for request in requests):
            return None
        canvas = self.canvas
        numbers = (canvas.emitted_before, canvas.num_final, emitted.counts)
        rows = torch.stack(numbers, dim=1).tolist()
        parts: list[TokenLogprobs | None] = []
        for request, (first, end, count) in zip(requests, rows, strict=True):
            if request.logprobs is None:
                parts.append(None)
                continue
            num_tokens = min(max(end - first, 0), count)
            suffix = request.params.suffix_token_ids
            suffix = suffix[len(suffix) - (count - num_tokens) :]
            parts.append(request.logprobs.emitted(first, first + num_tokens, suffix))
        return packed(parts)

    def report(self) -> torch.Tensor:
        """Send to the host what it has to know before a step after the next one.

        Returns:
            Tokens of each request that its next step computes anew although vLLM counts
            them as computed: ``[n]``, int32.
        """
        numbers, moving = self._numbers, self.canvas.moving
        first = self.canvas.computed_first(numbers.next_first, numbers.prompt_len)
        offset = first - numbers.prompt_len if self._follows_blocks else None
        learned = (
            self.canvas.num_candidates_next(offset),
            moving.block,
            moving.step_in_block,
            moving.stop,
        )
        self._step.report = DeviceReport(torch.stack(learned, dim=1))
        # The step is kept until that is read.
        self._step.hidden_states = None
        for request in self._step.requests:
            request.end_step()
        return (numbers.num_seen - first).int()

    def _predict(self, places: torch.Tensor, is_drawn: bool) -> Predictions:
        """Tokens and confidence at ``places`` (``[r]``, int64) in the flattened
        canvases; arbitrary at -1."""
        width = self._rows.shape[1]
        owners = torch.div(places, width, rounding_mode="floor")
        # The last column at -1, which may stand beyond the batch.
        rows = self._rows.flatten()[places].clamp(0, self._step.num_rows - 1)
        hidden_states = self._step.hidden_at(rows, owners, self._numbers)
        if not self._drawing.is_random:
            return self._predictor.predict(hidden_states, None)
        columns = places - owners * width
        num_prompt_masks = self._step.batch.fixed.num_prompt_masks
        where = CanvasRows(
            owners=owners,
            offsets=columns - num_prompt_masks[owners],
            steps=self.canvas.moving.step[owners],
        )
        sampling = self._drawing.rows(where) if is_drawn else None
        tokens, confidence = self._predictor.predict(hidden_states, sampling)
        return Predictions(tokens, self._drawing.ranking(where, confidence))
