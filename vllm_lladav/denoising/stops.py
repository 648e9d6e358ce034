# SPDX-License-Identifier: Apache-2.0
"""Stop sequences of a batch, and where they stand in its canvases.

They are searched by rolling hashes (Karp and Rabin, 1987), so that a search takes as
long as the canvases are, however long the sequences: a hash is ``sum of code(token) *
BASE ** place`` on int64, which wraps around, and that of any part of a canvas is a
difference of two running sums. Two different sequences have the same one in about 2^64
cases, fewer if somebody looks for them, and what ends then is an answer of theirs.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch.nn.functional import pad

from vllm_lladav.denoising.marks import FinishMark
from vllm_lladav.denoising.noise import scrambled
from vllm_lladav.denoising.to_device import to_device
from vllm_lladav.denoising.unmasking import UNSET, first_offset

BASE = -7046029254386353131
"""Odd, so that no power of it is zero."""

_ANY = -2
"""Pads a sequence: no token is this one."""


class StopSequences:
    """The stop sequences of the requests in a batch that have some.

    Args:
        rows: ``[k]``, int64: their places in the batch.
        tokens: ``[k, sequences, tokens]``, int64, padded with :data:`_ANY`.
    """

    def __init__(self, rows: torch.Tensor, tokens: torch.Tensor) -> None:
        self.rows = rows
        is_token = tokens != _ANY
        self._lengths = is_token.sum(dim=-1)  # [k, sequences]
        terms = scrambled(tokens) * _powers(tokens)
        self._hashes = terms.masked_fill(~is_token, 0).sum(dim=-1)
        self._numbers = torch.arange(tokens.shape[1], device=tokens.device)

    @classmethod
    def of(
        cls,
        sequences: Sequence[Sequence[Sequence[int]]],
        device: torch.device,
    ) -> Self | None:
        """The sequences of each request of a batch; None if there are none."""
        rows = [row for row, found in enumerate(sequences) if found]
        if not rows:
            return None
        number = max(len(sequences[row]) for row in rows)
        length = max(len(tokens) for row in rows for tokens in sequences[row])
        nothing = [_ANY] * length
        padded = [
            [
                [*tokens, *nothing][:length]
                for tokens in [*sequences[row], *[()] * number][:number]
            ]
            for row in rows
        ]
        return cls(to_device(rows, device), to_device(padded, device))

    def find(
        self, tokens: torch.Tensor, offsets: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        """Where each sequence begins.

        Args:
            tokens: ``[k, w]``, int64.
            offsets: of these, from the canvas's start: ``[k or 1, w]``.
            lengths: of the canvases: ``[k]``.

        Returns:
            ``[k, sequences]``: offset of the first place, or :data:`UNSET`.
        """
        powers, width = _powers(tokens), tokens.shape[1]
        sums = pad((scrambled(tokens) * powers).cumsum(dim=1), (1, 0))
        ends = offsets[:, None] + self._lengths[..., None]  # [k, sequences, w]
        fits = (ends <= lengths[:, None, None]) & (offsets >= 0)[:, None]
        fits &= (self._lengths > 0)[..., None]
        columns = torch.arange(width, device=tokens.device)
        behind = (columns + self._lengths[..., None]).clamp(max=width)
        parts = sums.gather(1, behind.flatten(1)).view_as(behind) - sums[:, None, :-1]
        stands = fits & (parts == self._hashes[..., None] * powers)
        return first_offset(stands, offsets[:, None])

    def first_found(
        self, starts: torch.Tensor, was_found: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sequence that counts: they are looked for in their order, no further than
        the first one that is there, and only the first of all once any was found.

        Args:
            starts: ``[k, sequences]``, what :meth:`find` returned.
            was_found: ``[k]``, bool: in an earlier step.

        Returns:
            Where it begins, ``[k]``, :data:`UNSET` for nowhere, and its
            :class:`FinishMark`, ``[k]``.
        """
        found = (starts < UNSET) & ((self._numbers == 0) | ~was_found[:, None])
        which = first_offset(found, self._numbers[None]).clamp(
            max=len(self._numbers) - 1
        )
        start = torch.where(found, starts, UNSET).gather(1, which[:, None])[:, 0]
        return start, FinishMark.STOP_STRING - which


def _powers(like: torch.Tensor) -> torch.Tensor:
    """Of :data:`BASE`, from 0 on: as many as ``like`` (``[..., n]``) has columns."""
    factors = torch.full_like(like[(0,) * (like.dim() - 1)], BASE)
    factors[:1] = 1
    return factors.cumprod(dim=0)
