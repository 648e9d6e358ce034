# SPDX-License-Identifier: Apache-2.0
"""What a worker shows of a canvas, step by step, to a client that asked for it.

A frame is what one step of one request did. It leaves the worker as a row of 64-bit
integers: a head, a cell for every column of the canvas, and, where visual tokens were
pruned, a bit for each that says whether it is left. The front end gets it as plain
values.
"""

import math
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch

from vllm_lladav.denoising.plan import StepIndex

SHOWN_KEY = "lladav_shown"
"""Where in vLLM's pass-through field of an output (``kv_transfer_params``) a frame goes
to the front end."""

UNCHANGED = -1
"""Cell of a position that the step leaves as it is."""

WORD_BITS = 32
"""Visual tokens in a number of a row."""


class FrameHead(NamedTuple):
    """What a row begins with, as tensors of rows or as numbers.

    Attributes:
        place: of the request in the batch.
        is_running: 0 for a request that had ended when the step began.
        step, block, step_in_block, stop: before the step, as in :class:`StepIndex`;
            ``stop`` is the canvas's length if there is none.
        num_candidates: masks that the step could transfer.
        num_masks: in the canvas before the step.
        num_final: tokens of the answer that no later step can change.
        is_last: 1 if the request is done.
        gen_length: of the canvas.
        first_column: of the canvas.
        num_visual: visual tokens that are left behind the step.
        num_columns: cells in the row.
    """

    place: Any
    is_running: Any
    step: Any
    block: Any
    step_in_block: Any
    stop: Any
    num_candidates: Any
    num_masks: Any
    num_final: Any
    is_last: Any
    gen_length: Any
    first_column: Any
    num_visual: Any
    num_columns: Any


class Unmasked(NamedTuple):
    """A position that became a token.

    Attributes:
        position: in the canvas.
        confidence: what ranked it; None where nothing did.
    """

    position: int
    token_id: int
    confidence: float | None


class Frame(NamedTuple):
    """One step of one request.

    Attributes:
        step_index: which step.
        num_candidates: masks that it could transfer.
        num_masks: in the canvas before it.
        num_final: tokens of the answer that no later step can change.
        is_last: whether the request is done.
        num_visual: visual tokens that are left behind it.
        unmasked: in order of their positions.
        kept: which of the request's visual tokens are left, where some were pruned.
    """

    step_index: StepIndex
    num_candidates: int
    num_masks: int
    num_final: int
    is_last: bool
    num_visual: int
    unmasked: tuple[Unmasked, ...]
    kept: tuple[int, ...] | None

    @classmethod
    def of_row(cls, row: Sequence[int]) -> Self | None:
        """What a worker's row says; None if the request had ended."""
        size = len(FrameHead._fields)
        head = FrameHead(*row[:size])
        if not head.is_running:
            return None
        end = size + head.num_columns
        stop = head.stop if head.stop < head.gen_length else None
        return cls(
            step_index=StepIndex(head.step, head.block, head.step_in_block, stop),
            num_candidates=head.num_candidates,
            num_masks=head.num_masks,
            num_final=head.num_final,
            is_last=bool(head.is_last),
            num_visual=head.num_visual,
            unmasked=tuple(
                _read_cell(column - head.first_column, cell)
                for column, cell in enumerate(row[size:end])
                if cell != UNCHANGED
            ),
            kept=_read_words(row[end:]),
        )

    @classmethod
    def from_values(cls, values: Sequence[Any]) -> Self:
        """From what ``list(frame)`` has become on its way between processes."""
        frame = cls(*values)
        return frame._replace(
            step_index=StepIndex(*frame.step_index),
            unmasked=tuple(Unmasked(*one) for one in frame.unmasked),
            kept=None if frame.kept is None else tuple(frame.kept),
        )


class Shown(NamedTuple):
    """A frame on its way to the front end, as plain values.

    Attributes:
        channel: of the client.
        frame: ``list(frame)``.
        start: what is known of the request before its first step; with its first
            frame only.
    """

    channel: int
    frame: list[Any]
    start: dict[str, Any] | None


def cells(
    tokens: torch.Tensor, confidence: torch.Tensor, is_unmasked: torch.Tensor
) -> torch.Tensor:
    """Cells of rows, ``[n, w]``, int64.

    Args:
        tokens: ``[n, w]``, int64.
        confidence: ``[n, w]``; sent in 32 bits.
        is_unmasked: ``[n, w]``, bool.
    """
    bits = confidence.float().contiguous().view(torch.int32).long() & 0xFFFFFFFF
    return torch.where(is_unmasked, (tokens << 32) | bits, UNCHANGED)


def words(num_tokens: int, left: torch.Tensor) -> torch.Tensor:
    """A bit for each of ``num_tokens`` visual tokens, set for those that are ``left``
    (``[k]``, int64, indices): ``[words]``, int64. A row has one more, set, at the end,
    which tells where they end."""
    size = -(-(num_tokens + 1) // WORD_BITS) * WORD_BITS
    bits = torch.zeros(size, dtype=torch.int64, device=left.device)
    bits[left] = 1
    bits[num_tokens] = 1
    places = torch.arange(WORD_BITS, device=left.device)
    return (bits.view(-1, WORD_BITS) << places).sum(dim=1)


def _read_cell(position: int, cell: int) -> Unmasked:
    (confidence,) = struct.unpack("<f", struct.pack("<I", cell & 0xFFFFFFFF))
    known = confidence if math.isfinite(confidence) else None
    return Unmasked(position, cell >> 32, known)


def _read_words(numbers: Sequence[int]) -> tuple[int, ...] | None:
    kept = [
        number * WORD_BITS + place
        for number, word in enumerate(numbers)
        for place in range(WORD_BITS)
        if word >> place & 1
    ]
    return tuple(kept[:-1]) if kept else None
