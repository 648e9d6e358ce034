# SPDX-License-Identifier: Apache-2.0
"""Numbers that are a function of where they are used."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_lladav.denoising.noise import row_keys, uniform, uniform_of
from vllm_lladav.denoising.unmasking import gumbel_tokens

UINT64 = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15

GOLDEN_KEYS = [-3410299163015780912, -1222575455373701017, 6334962940272783422]
GOLDEN_NUMBERS = [
    [0.9222097739242144, 0.5250384975733787],
    [0.9122200964244555, 0.058701847387372275],
    [0.38842548719193004, 0.7112350804737092],
]
GOLDEN_RANKS = [0.7359337043632991, 0.3457721834511521, 0.7407144063299375]

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)


def mix(z: int) -> int:
    """SplitMix64's output function, on Python's integers."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & UINT64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & UINT64
    return z ^ (z >> 31)


def splitmix64(seed: int, count: int) -> list[int]:
    """The first ``count`` numbers of the generator."""
    return [mix((seed + i * GOLDEN) & UINT64) for i in range(1, count + 1)]


def to_float(bits: int) -> float:
    return ((bits >> 12) + 0.5) / (1 << 52)


def key_of(seed: int, step: int, column: int) -> int:
    """An int64."""
    state = 0
    for number in (seed, step, column):
        (state,) = splitmix64((state + number) & UINT64, 1)
    return state - (1 << 64) if state >> 63 else state


def keys_of(seeds, steps, columns) -> torch.Tensor:
    """All combinations, the last varies fastest: ``[n]``."""
    grids = np.meshgrid(seeds, steps, columns, indexing="ij")
    return row_keys(*(torch.from_numpy(grid.reshape(-1)) for grid in grids))


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """In standard deviations of what independent numbers have."""
    pair = torch.stack([a.reshape(-1), b.reshape(-1)])
    return torch.corrcoef(pair)[0, 1].item() * math.sqrt(pair.shape[1])


def test_the_reference_is_splitmix64():
    """As Vigna's splitmix64.c prints for this seed."""
    assert splitmix64(1234567, 3) == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@given(INT64, st.integers(0, 1 << 20), st.integers(-5000, 1 << 20))
def test_row_keys_are_three_times_splitmix64(seed: int, step: int, column: int):
    numbers = (torch.tensor([number]) for number in (seed, step, column))
    assert row_keys(*numbers).tolist() == [key_of(seed, step, column)]


@given(INT64)
def test_uniform_is_splitmix64(key: int):
    """To the bit; the number of the row alone is that before the first."""
    found = uniform(torch.tensor([key]), 5)
    assert found.dtype == torch.float64
    assert found.tolist() == [[to_float(bits) for bits in splitmix64(key, 5)]]
    assert uniform_of(torch.tensor([[key]])).tolist() == [[to_float(mix(key & UINT64))]]


def test_golden_numbers():
    """What a seed gives stays what it is from version to version."""
    keys = row_keys(torch.tensor([7]), torch.tensor([3]), torch.tensor([0, 1, 126]))
    assert keys.tolist() == GOLDEN_KEYS
    assert uniform(keys, 2).tolist() == GOLDEN_NUMBERS
    assert uniform_of(keys).tolist() == GOLDEN_RANKS


def test_neither_0_nor_1():
    """The extremes of the bits, found by the inverse of the output function."""

    def inverse(z: int) -> int:
        for count, factor in ((31, 0x94D049BB133111EB), (27, 0xBF58476D1CE4E5B9)):
            z ^= (z >> count) ^ (z >> 2 * count)
            z = z * pow(factor, -1, 1 << 64) & UINT64
        z ^= (z >> 30) ^ (z >> 60)
        return z - (1 << 64) if z >> 63 else z

    keys = torch.tensor([inverse(0), inverse(UINT64)])
    assert uniform_of(keys).tolist() == [2.0**-53, 1 - 2.0**-53]


@pytest.mark.parametrize("num_columns", [1, 448, 5000])
def test_same_numbers_in_any_batch(num_columns: int):
    """Row by row as in a batch, of whatever size works at once, and written where the
    caller says; of fewer columns, the first ones."""
    keys = keys_of([1, -2], [0, 9], range(75))
    batch = uniform(keys, num_columns)
    assert batch.shape == (300, num_columns)
    rows = torch.cat([uniform(keys[i : i + 1], num_columns) for i in range(300)])
    assert torch.equal(rows, batch)
    assert torch.equal(uniform(keys, 1), batch[:, :1])
    out = torch.empty(310, num_columns, dtype=torch.float64)
    assert torch.equal(uniform(keys, num_columns, out=out[:300]), batch)
    assert torch.equal(out[:300], batch)
    assert torch.equal(uniform_of(keys.view(30, 10)).view(-1), uniform_of(keys))


def test_uniformity():
    """Chi-square over 256 cells and the Kolmogorov-Smirnov distance, of a million
    numbers in all and of the ranks; fixed seeds, bounds that chance exceeds once in
    about 10,000 times."""
    keys = keys_of([0, 1, 2, 12345], range(8), range(32))
    ranked = keys_of([5], [0, 1], range(50_000))
    for numbers in (uniform(keys, 1024).view(-1), uniform_of(ranked)):
        count = len(numbers)
        cells = torch.bincount((numbers * 256).long(), minlength=256).double()
        chi_square = ((cells - count / 256).square() / (count / 256)).sum().item()
        assert abs(chi_square - 255) < 3.9 * math.sqrt(2 * 255)
        ranks = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        distance = (numbers.sort().values - ranks).abs().max().item()
        assert distance * math.sqrt(count) < 2.2


def test_low_bits_are_uniform():
    keys = keys_of([3], range(4), range(16))
    bits = (uniform(keys, 1024) * 2.0**52).long() & 255
    cells = torch.bincount(bits.view(-1), minlength=256).double()
    expected = bits.numel() / 256
    chi_square = ((cells - expected).square() / expected).sum().item()
    assert abs(chi_square - 255) < 3.9 * math.sqrt(2 * 255)


def test_neighbours_do_not_correlate():
    """Seeds, steps, positions and tokens next to each other."""
    keys = keys_of(range(8), range(8), range(16))
    numbers = uniform(keys, 256).view(8, 8, 16, 256)
    for dim in range(4):
        size = numbers.shape[dim] - 1
        for of in (numbers, -numbers.log().neg().log()):
            pair = of.narrow(dim, 0, size), of.narrow(dim, 1, size)
            assert abs(correlation(*pair)) < 4, dim
    # What ranks a position, and what draws its tokens.
    ranks = uniform_of(keys).view(8, 8, 16, 1).expand_as(numbers)
    for column in range(3):
        assert abs(correlation(ranks[..., column], numbers[..., column])) < 4


def test_keys_differ():
    """Also where sums of seed, step and position are equal."""
    keys = keys_of(range(-20, 20), range(40), range(-10, 40))
    assert len(keys.unique()) == len(keys)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_follow_the_tempered_distribution(temperature: float):
    """Chi-square of 40,000 draws against softmax(logits / temperature), of 64 tokens;
    chance exceeds the bound once in about 10,000 times."""
    keys = keys_of([11], range(100), range(400))
    logits = 1.5 * torch.randn(64, generator=torch.Generator().manual_seed(1))
    tokens = gumbel_tokens(
        logits.expand(len(keys), -1),
        torch.full((len(keys),), temperature, dtype=torch.float64),
        uniform(keys, 64),
    )
    counts = torch.bincount(tokens, minlength=64).double()
    expected = len(keys) * (logits.double() / temperature).softmax(-1)
    chi_square = ((counts - expected).square() / expected).sum().item()
    assert abs(chi_square - 63) < 3.9 * math.sqrt(2 * 63)
