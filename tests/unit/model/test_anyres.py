# SPDX-License-Identifier: Apache-2.0
"""Tiling: counts and pixels against the official code, merging by hand."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.golden.cases import GoldenCase, load_cases, load_visual_token_counts
from vllm_lladav.model.lladav.anyres import (
    AnyresGeometry,
    final_grid,
    largest_image,
    merge_tiles,
    num_visual_tokens,
    preprocess,
    resize_padded,
    select_best_resolution,
    tile_layout,
    unpadded_grid,
)

PINPOINTS = tuple((384 * a, 384 * b) for a in range(1, 7) for b in range(1, 7))
GEOMETRY = AnyresGeometry(pinpoints=PINPOINTS)
IMAGE_CASES = [case for case in load_cases().values() if case.images]

sides = st.integers(1, 20_000)


def test_counts_equal_the_official_ones():
    for row in load_visual_token_counts():
        size = row.width, row.height
        assert tile_layout(size, GEOMETRY) == row.tiles, row
        assert unpadded_grid(size, GEOMETRY) == row.unpadded, row
        assert final_grid(size, GEOMETRY) == row.final, row
        assert num_visual_tokens(*size, GEOMETRY) == row.tokens, row


def naive_best_resolution(width: int, height: int) -> tuple[int, int]:
    """Written from the description: keep the most pixels, then waste the fewest."""

    def rank(canvas: tuple[int, int]) -> tuple[int, int]:
        scale = min(canvas[0] / width, canvas[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - canvas[0] * canvas[1]

    return max(PINPOINTS, key=rank)  # the first of equals


@given(sides, sides)
def test_best_resolution(width: int, height: int):
    best = select_best_resolution((width, height), PINPOINTS)
    assert best == naive_best_resolution(width, height)


@given(sides, sides)
def test_grid_follows_the_aspect(width: int, height: int):
    """Exact fractions instead of floats: within a token pair of the same grid."""
    columns, rows = (27 * n for n in tile_layout((width, height), GEOMETRY))
    found = unpadded_grid((width, height), GEOMETRY)
    aspect = Fraction(width, height)
    wanted = (
        (rows, rows * aspect)
        if aspect <= Fraction(columns, rows)
        else (columns / aspect, columns)
    )
    # Both margins are cut alike, so the parity of the canvas stays; int() and
    # float rounding lose less than one more.
    assert all(0 <= f - w + 1 < 3 for f, w in zip(found, wanted, strict=True))
    assert (rows - found[0]) % 2 == 0
    assert (columns - found[1]) % 2 == 0
    final = final_grid((width, height), GEOMETRY)
    if found[0] * found[1] <= 4 * 729 * 1.2:
        assert final == found
    if found[0] * found[1] >= 4 * 729 * 1.22:
        assert final[0] * final[1] <= 4 * 729


@given(sides, sides)
def test_no_image_is_larger_than_the_largest(width: int, height: int):
    largest = num_visual_tokens(*largest_image(GEOMETRY), GEOMETRY)
    assert 729 < num_visual_tokens(width, height, GEOMETRY) <= largest


@pytest.mark.parametrize("mode", ["anyres", "pad_stacked", "pad_list"])
@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1), (1, 1), (385, 383)])
def test_counts_equal_the_merge(mode, size):
    """What is announced from the size is what the merge produces."""
    columns, rows = tile_layout(size, GEOMETRY)
    tiles = 1 + columns * rows if mode == "anyres" else 1
    merged = merge_tiles(
        torch.zeros(tiles, 729, 2), size, torch.ones(2), GEOMETRY, mode
    )
    assert merged.shape == (num_visual_tokens(*size, GEOMETRY, mode), 2)


def test_merge_puts_a_newline_after_every_row():
    geometry = AnyresGeometry(((4, 4), (8, 4)), tile_size=4, tile_grid=2)
    features = torch.arange(12.0).view(3, 4, 1)
    merged = merge_tiles(features, (8, 4), torch.tensor([-1.0]), geometry)
    base, first, second = [0, 1, 2, 3], [4, 5, 8, 9, -1], [6, 7, 10, 11, -1]
    assert merged.flatten().tolist() == [*base, *first, *second]


def test_plain_anyres_is_never_shrunk():
    geometry = AnyresGeometry(PINPOINTS, max_tiles=None)
    assert final_grid((2304, 2304), geometry) == (162, 162)


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_empty_image_is_refused(size):
    with pytest.raises(ValueError, match=f"{size[0]}x{size[1]} pixels is empty"):
        num_visual_tokens(*size, GEOMETRY)
    with pytest.raises(ValueError, match="is empty"):
        preprocess(Image.new("RGB", size), GEOMETRY)


def test_elongated_image_is_refused_where_nothing_is_left():
    # Only with pinpoints that force an even number of rows.
    geometry = AnyresGeometry(((768, 768),))
    with pytest.raises(ValueError, match="20000x1 pixels is too elongated"):
        num_visual_tokens(20_000, 1, geometry)


@pytest.mark.parametrize("case", IMAGE_CASES, ids=lambda case: case.name)
def test_pixels_equal_the_official_ones(case: GoldenCase):
    images = [Image.open(path) for path in case.image_paths]
    parts = [preprocess(i, GEOMETRY, case.image_mode) for i in images]
    assert all(part.is_contiguous() for part in parts)
    tiles = torch.cat(parts)
    mean = tiles.double().mean((2, 3)).numpy()
    sample = tiles[:, :, 3::16, 3::16].numpy()
    np.testing.assert_allclose(mean, case.tensors["pixel_tile_mean"], atol=1e-6)
    np.testing.assert_array_equal(sample, case.tensors["pixel_sample_stride16_offset3"])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "1", "CMYK", "I;16", "F"])
def test_every_pil_mode_becomes_rgb(mode):
    image = Image.new("RGB", (20, 10), (200, 100, 50)).convert(
        mode if mode != "I;16" else "I"
    )
    if mode == "I;16":
        image = image.convert("I;16")
    expected = preprocess(image.convert("RGB"), GEOMETRY)
    assert torch.equal(preprocess(image, GEOMETRY), expected)


def test_padding_is_the_mean_colour():
    square = resize_padded(Image.new("RGB", (10, 4), (255, 0, 0)), 10)
    assert square.size == (10, 10)
    assert square.getpixel((0, 2)) == (127, 127, 127)
    assert square.getpixel((0, 3)) == (255, 0, 0)
    assert square.getpixel((0, 7)) == (127, 127, 127)


@pytest.mark.parametrize(
    "size", [(700, 300), (301, 900), (1, 2000), (2000, 3), (384, 384), (384, 7), (5, 9)]
)
def test_padding_in_strips_is_padding_at_once(size):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(noise)
    side = max(size)
    square = Image.new("RGB", (side, side), (127, 127, 127))
    square.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    expected = square.resize((384, 384), Image.Resampling.BICUBIC)
    assert resize_padded(image, 384).tobytes() == expected.tobytes()
