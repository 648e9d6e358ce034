# SPDX-License-Identifier: Apache-2.0
"""Frames of the requests of a batch whose clients watch their canvas.

Rows of all others are not made. They travel in a field of vLLM's step output that has
room for a row of each request and is copied with the rest (``num_nans``, which
denoising does not count): the host waits for nothing.
"""

from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np
import torch
from torch.nn.functional import pad
from vllm.utils.torch_utils import async_tensor_h2d

from vllm_lladav.denoising.canvas_step import CanvasStep
from vllm_lladav.denoising.frame import FrameHead, cells, words


class WatchedVisual:
    """Which visual tokens of a watched request are left.

    Args:
        num_visual: before anything is pruned.
    """

    def __init__(self, num_visual: int, device: torch.device) -> None:
        self._num_visual = num_visual
        self._left = torch.arange(num_visual, device=device)
        self._is_news = False

    def keep(self, kept: torch.Tensor) -> None:
        """A stage keeps these (``[k]``, int64) of those that were left."""
        self._left = self._left[kept]
        self._is_news = True

    def take_words(self) -> torch.Tensor | None:
        """What a frame says of them; None if nothing changed since the last one."""
        if not self._is_news:
            return None
        self._is_news = False
        return words(self._num_visual, self._left)


class WatchedRequest(Protocol):
    """What frames need of a request."""

    @property
    def watched(self) -> WatchedVisual | None:
        """None if no client watches."""

    @property
    def visual(self) -> torch.Tensor:
        """Positions of the visual tokens that are left: ``[m]``."""

    @property
    def num_prompt_masks(self) -> int: ...


class Frames:
    """The frames of a step, begun before its transfers.

    Args:
        watched: places in the batch, and the requests there.
    """

    def __init__(
        self, watched: Sequence[tuple[int, WatchedRequest]], canvas: CanvasStep
    ) -> None:
        self._watched = watched
        self._tokens, self._moving = canvas.tokens, canvas.moving
        device = canvas.tokens.device
        numbers = [(i, r.num_prompt_masks, len(r.visual)) for i, r in watched]
        self._known = async_tensor_h2d(np.array(numbers).T, device=device)

    @classmethod
    def of(cls, requests: Sequence[WatchedRequest], canvas: CanvasStep) -> Self | None:
        """None where nobody watches."""
        watched = [(i, r) for i, r in enumerate(requests) if r.watched is not None]
        return cls(watched, canvas) if watched else None

    def packed(self, canvas: CanvasStep) -> torch.Tensor:
        """``[watched, numbers]``, int64, once the step is done."""
        places, num_prompt_masks, num_visual = self._known
        moving, batch = self._moving, canvas.batch
        before = self._tokens[places]
        was_mask = (before == canvas.mask_token_id) & batch.in_canvas[places]
        tokens = canvas.tokens[places]
        is_unmasked = was_mask & (tokens != canvas.mask_token_id)
        head = FrameHead(
            place=places,
            is_running=canvas.was_running[places],
            step=moving.step[places],
            block=moving.block[places],
            step_in_block=moving.step_in_block[places],
            stop=moving.stop[places],
            num_candidates=canvas.candidates[places].sum(dim=1),
            num_masks=was_mask.sum(dim=1),
            num_final=canvas.num_final[places],
            is_last=canvas.moving.finished[places],
            gen_length=batch.fixed.gen_length[places],
            first_column=num_prompt_masks,
            num_visual=num_visual,
            num_columns=torch.full_like(places, batch.width),
        )
        row_cells = cells(tokens, canvas.scores[places], is_unmasked)
        parts = [torch.stack(head, dim=1), row_cells]
        news = [self._words_of(request) for _, request in self._watched]
        most = max(map(len, news))
        if most:
            parts.append(torch.stack([pad(one, (0, most - len(one))) for one in news]))
        return torch.cat(parts, dim=1)

    def _words_of(self, request: WatchedRequest) -> torch.Tensor:
        assert request.watched is not None
        found = request.watched.take_words()
        return self._known.new_empty(0) if found is None else found
