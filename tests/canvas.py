# SPDX-License-Identifier: Apache-2.0
"""A batch of one canvas, for tests that denoise without an engine."""

from collections.abc import Callable

import numpy as np
import torch

from vllm_lladav.denoising.canvas import Canvases, CanvasRequest, Moving
from vllm_lladav.denoising.canvas_step import CanvasStep, Emitted
from vllm_lladav.denoising.marks import PruneReport
from vllm_lladav.denoising.official_order import Layout, settle
from vllm_lladav.denoising.params import DenoisingParams
from vllm_lladav.denoising.plan import Span, StepIndex
from vllm_lladav.worker.step_output import packed

CPU = torch.device("cpu")


class OneCanvas:
    """One request's tokens while it is denoised.

    Args:
        has_official_order: as on a CPU; else as on a GPU.
    """

    def __init__(
        self,
        params: DenoisingParams,
        prompt_token_ids: list[int],
        mask_token_id: int,
        num_emitted: int = 0,
        has_official_order: bool = True,
    ) -> None:
        self.params = params
        self._prompt = np.array(prompt_token_ids)
        self.has_official_order = has_official_order
        self._canvases = Canvases(mask_token_id, 3, CPU)
        self._masks = np.flatnonzero(self._prompt == mask_token_id)
        request = CanvasRequest(params, len(self._masks), num_emitted)
        self._canvases.add(1, request)
        self._emitted: Emitted | None = None
        self._step: CanvasStep | None = None

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def prompt_len(self) -> int:
        return len(self._prompt)

    @property
    def token_ids(self) -> np.ndarray:
        """Prompt, canvas and suffix: ``[n]``, int64."""
        columns = self._canvases.tokens[1].numpy()
        prompt = self._prompt.copy()
        prompt[self._masks] = columns[: len(self._masks)]
        return np.concatenate([prompt, columns[len(self._masks) :]])

    @property
    def tail(self) -> np.ndarray:
        return self.token_ids[self.prompt_len :]

    @property
    def generated(self) -> np.ndarray:
        return self.tail[: self.params.gen_length]

    @property
    def finished(self) -> bool:
        return bool(self._moving["finished"])

    @property
    def index(self) -> StepIndex:
        moving = self._moving
        stop = moving["stop"] if moving["stop"] < self.params.gen_length else None
        return StepIndex(moving["step"], moving["block"], moving["step_in_block"], stop)

    @property
    def step(self) -> int:
        return self.index.step

    @property
    def num_wanted(self) -> int:
        """Transfers that the last step wanted."""
        assert self._step is not None
        return int(self._step.counts)

    def masks(self) -> np.ndarray:
        """Positions of the canvas's masks."""
        return self.prompt_len + self._canvases.masks_of(1).numpy()

    def keep_prompt(self, positions: np.ndarray) -> None:
        self._masks = np.searchsorted(positions, self._masks)
        self._prompt = self._prompt[positions]

    def candidates(self, first: int = 0) -> np.ndarray:
        """Positions from ``first`` on that the next step may transfer."""
        offset = torch.tensor([first - self.prompt_len])
        self._step = CanvasStep(self._canvases, self._canvases.batch([1]), offset)
        return self._positions[self._step.candidates[0].numpy()]

    def transfer(
        self,
        candidates: np.ndarray,
        tokens: np.ndarray,
        confidence: torch.Tensor,
        predict: Callable[[np.ndarray], np.ndarray],
        layout: Span | None = None,
    ) -> np.ndarray:
        """End the step that :meth:`candidates` began: the positions transferred."""
        step = self._step
        assert step is not None
        places = step.candidates.flatten().nonzero()[:, 0]
        ranking = step.transfer(
            places, torch.from_numpy(tokens), confidence, len(candidates)
        )
        if self.has_official_order:
            span = layout or Span(0, len(self))
            positions = self._positions
            settle(
                step,
                ranking,
                lambda row: Layout(span, torch.from_numpy(positions)),
                lambda row, columns: torch.from_numpy(
                    np.asarray(predict(positions[columns.numpy()]))
                ),
            )
        step.advance()
        self._emitted = step.emit()
        return self._positions[ranking.chosen[0].numpy()]

    def take_output(self, pruned: PruneReport | None = None) -> list[int]:
        """What the last step hands out, its report included."""
        assert self._step is not None and self._emitted is not None
        tokens, counts = packed(self._step, self._emitted, [pruned])
        return tokens[0, : int(counts)].tolist()

    @property
    def _moving(self) -> dict[str, int]:
        return dict(zip(Moving._fields, self._canvases.moving[1].tolist(), strict=True))

    @property
    def _positions(self) -> np.ndarray:
        """Of the columns."""
        tail = np.arange(self.prompt_len, self.prompt_len + self.params.num_tail_tokens)
        return np.concatenate([self._masks, tail])
