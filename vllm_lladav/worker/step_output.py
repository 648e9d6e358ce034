# SPDX-License-Identifier: Apache-2.0
"""What a step hands out of its requests: answer tokens, and marks behind them."""

from collections.abc import Sequence

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d

from vllm_lladav.denoising.canvas_step import CanvasStep, Emitted
from vllm_lladav.denoising.marks import NOTHING, PruneReport, block_mark, stop_mark


def packed(
    step: CanvasStep, emitted: Emitted, pruned: Sequence[PruneReport | None]
) -> tuple[torch.Tensor, torch.Tensor]:
    """For :class:`~vllm_lladav.denoising.marks.StepReport` to take apart.

    Args:
        step: that is done.
        emitted: what it made final.
        pruned: what was pruned of each request.

    Returns:
        ``[n, columns]``, int32, and how many of them each request hands out, ``[n]``,
        int32: none where it had ended before. What a request that has ended hands out
        fits into a row of ``max_model_len``: its prompt left more room than it needs.
    """
    device, fixed, moving = emitted.counts.device, step.batch.fixed, step.moving
    marks: list[torch.Tensor] = []
    if any(pruned):
        nothing = (NOTHING, NOTHING)
        rows = [nothing if report is None else report.marks() for report in pruned]
        marks += async_tensor_h2d(np.array(rows), device=device).unbind(1)
    marks.append(emitted.finish)
    num_marks = torch.full_like(emitted.counts, len(marks))
    if step.batch.follows_blocks:
        follows = fixed.follows_blocks == 1
        has_stop = follows & (moving.stop < fixed.gen_length)
        marks.append(torch.where(follows, block_mark(moving.block), NOTHING))
        marks.append(torch.where(has_stop, stop_mark(moving.stop), NOTHING))
        # Nothing comes next for a request that is done.
        num_marks += torch.where(moving.finished == 1, 0, 2)
    width = emitted.tokens.shape[1] + len(marks)
    place = torch.arange(width, device=device) - emitted.counts[:, None]
    mark = torch.stack(marks, dim=1).gather(1, place.clamp(0, len(marks) - 1))
    tokens = torch.nn.functional.pad(emitted.tokens, (0, len(marks)))
    counts = (emitted.counts + num_marks).masked_fill(~step.was_running, 0)
    return torch.where(place < 0, tokens, mark).int(), counts.int()
