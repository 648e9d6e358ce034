# SPDX-License-Identifier: Apache-2.0
"""Random numbers that are a function of where they are used.

A generator has a state, which says that rows are drawn one after the other. Here the
number of a token at a position of a step of a request is computed from just these: it
does not depend on the batch, on the order, or on the device, and a whole tile is drawn
at once.

Source: SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
generators", OOPSLA 2014), on int64, whose products and sums wrap around as those of
uint64 do.
"""

import torch


def _signed(number: int) -> int:
    """The int64 with the bits of a uint64."""
    return number - (1 << 64) if number >> 63 else number


GOLDEN = _signed(0x9E3779B97F4A7C15)
FACTORS = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)

CACHED_NUMBERS = 1 << 19
"""That are worked on at once: 4 MiB, which a cache holds, and 4 rows of the official
vocabulary. Of fewer, a CPU's threads would wait for each other more often."""

EXPONENT_OF_ONE = 1023 << 52
"""Of a float64 in [1, 2), whose other 52 bits are free."""

ALMOST_ONE = 1 - 2.0**-53
"""What leaves (0, 1) of [1, 2), in steps of ``2**-52`` and as far from 0 as from 1."""


def row_keys(
    seeds: torch.Tensor, steps: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """What the numbers of every row are computed from: ``[n]``, int64.

    Args:
        seeds: of the requests: ``[n]``, int64.
        steps: of the requests, from 0: ``[n]``, int64.
        columns: positions, from the canvas's start: ``[n]``, int64.

    Shapes that broadcast will do.
    """
    return scrambled(scrambled(scrambled(seeds) + steps) + columns)


def uniform_of(keys: torch.Tensor) -> torch.Tensor:
    """One number for every key, which none of :func:`uniform` repeats: float64 in
    (0, 1), of the shape of ``keys`` (int64)."""
    return _open_interval(_mix(keys.clone()))


def uniform(
    keys: torch.Tensor, num_columns: int, out: torch.Tensor | None = None
) -> torch.Tensor:
    """A number for every token of every row: ``[n, num_columns]``, float64 in (0, 1).

    Args:
        keys: ``[n]``, int64: the states of as many SplitMix64 generators, of which
            these are the first numbers.
        out: ``[n, num_columns]``, float64, where they are written.
    """
    if out is None:
        size = (len(keys), num_columns)
        out = torch.empty(size, dtype=torch.float64, device=keys.device)
    columns = torch.arange(1, num_columns + 1, device=keys.device).mul_(GOLDEN)
    num_rows = max(1, CACHED_NUMBERS // num_columns)
    shifted = torch.empty_like(out[:num_rows], dtype=torch.int64)
    for rows, of_rows in zip(out.split(num_rows), keys.split(num_rows), strict=True):
        bits = rows.view(torch.int64)
        torch.add(columns, of_rows[:, None], out=bits)
        _open_interval(_mix(bits, shifted[: len(bits)]))
    return out


def scrambled(states: torch.Tensor) -> torch.Tensor:
    """The first number of generators at ``states``: int64, any shape."""
    return _mix(states + GOLDEN)


def _mix(bits: torch.Tensor, scratch: torch.Tensor | None = None) -> torch.Tensor:
    """The output function of SplitMix64; ``bits`` and ``scratch`` (int64, any shape,
    the same) are overwritten."""
    shifted = torch.empty_like(bits) if scratch is None else scratch
    _fold(bits, 30, shifted).mul_(FACTORS[0])
    _fold(bits, 27, shifted).mul_(FACTORS[1])
    return _fold(bits, 31, shifted)


def _fold(bits: torch.Tensor, count: int, shifted: torch.Tensor) -> torch.Tensor:
    """``bits ^= bits >> count``. int64 shifts its sign in, which is masked out."""
    torch.bitwise_right_shift(bits, count, out=shifted)
    return bits.bitwise_xor_(shifted.bitwise_and_((1 << (64 - count)) - 1))


def _open_interval(bits: torch.Tensor) -> torch.Tensor:
    """Float64 in the memory of ``bits`` (int64), of its upper 52: neither 0 nor 1, at
    which the logarithms of Gumbel noise are infinite.

    Bits are put together because few CPUs convert int64 in vectors.
    """
    torch.bitwise_right_shift(bits, 12, out=bits)
    bits.bitwise_and_((1 << 52) - 1).bitwise_or_(EXPONENT_OF_ONE)
    return bits.view(torch.float64).sub_(ALMOST_ONE)
