# SPDX-License-Identifier: Apache-2.0
"""Transfers that the numbers leave open, as the official code on a CPU makes them.

It runs ``torch.topk`` over the whole sequence with minus infinity at every position
that is no candidate. Which of equal confidences it takes, and which of the others where
there are fewer candidates than transfers, follows from that layout; the same call on
the same layout gives the same. This asks the host, so it is for canvases on a CPU.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from vllm_lladav.denoising.canvas_step import CanvasStep
from vllm_lladav.denoising.plan import Span
from vllm_lladav.denoising.unmasking import Ranking, select_transfers


class Layout(NamedTuple):
    """Where the columns of one canvas stand in its sequence.

    Attributes:
        span: positions from which transfers are chosen.
        positions: of the columns: ``[columns]``, int64, ascending.
    """

    span: Span
    positions: torch.Tensor


LayoutOf = Callable[[int], Layout]
"""Of a request, by its place in the batch."""

Predict = Callable[[int, torch.Tensor], torch.Tensor]
"""A request's place in the batch and some of its columns ``[k]`` -> predicted tokens
``[k]``, both int64."""


def settle(
    step: CanvasStep, ranking: Ranking, layout_of: LayoutOf, predict: Predict
) -> None:
    """Choose anew where ``ranking``, of :meth:`CanvasStep.transfer`, is not clear.

    Masks outside of the candidates are predicted only where there are fewer candidates
    than transfers. Both ``step`` and ``ranking`` are changed in place.
    """
    for row in (~ranking.is_clear).nonzero()[:, 0].tolist():
        columns = _selected(step, row, layout_of(row))
        is_candidate = step.candidates[row, columns]
        others = columns[~is_candidate]
        if len(others):
            step.predicted[row, others] = predict(row, others)
        step.tokens[row, step.candidates[row]] = step.mask_token_id
        step.tokens[row, columns] = step.predicted[row, columns]
        ranking.chosen[row] = False
        ranking.chosen[row, columns] = True


def _selected(step: CanvasStep, row: int, layout: Layout) -> torch.Tensor:
    """Columns of the masks that the official ranking selects: ``[k]``, ascending."""
    first, length = layout.span.first, layout.span.length
    candidates = step.candidates[row].nonzero()[:, 0]
    selected = select_transfers(
        layout.positions[candidates] - first,
        step.scores[row, candidates],
        min(int(step.counts[row]), length),
        length,
    )
    columns = torch.isin(layout.positions, first + selected).nonzero()[:, 0]
    # What was chosen already is a mask no more, but was a candidate.
    is_mask = step.tokens[row, columns] == step.mask_token_id
    return columns[is_mask | step.candidates[row, columns]]
