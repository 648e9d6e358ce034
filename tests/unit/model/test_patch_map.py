# SPDX-License-Identifier: Apache-2.0
"""Visual tokens back to the picture: counts, coverage, and what tiles really show."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vllm_lladav.model.lladav.anyres import (
    AnyresGeometry,
    fit_and_pad,
    merge_tiles,
    num_visual_tokens,
    preprocess,
    select_best_resolution,
)
from vllm_lladav.model.lladav.image_modes import IMAGE_MODES
from vllm_lladav.model.lladav.patch_map import (
    Box,
    VisualToken,
    fitted_size,
    map_visual_tokens,
)

PINPOINTS = tuple((384 * a, 384 * b) for a in range(1, 7) for b in range(1, 7))
GEOMETRY = AnyresGeometry(pinpoints=PINPOINTS)
TILE, SIDE, PATCH = 384, 27, 14

sides = st.integers(1, 6_000)
sizes = st.tuples(sides, sides)
modes = st.sampled_from(IMAGE_MODES)

# Wide, tall, small, a whole tile, elongated; the last three have shrunk grids.
SIZES = [
    *((1000, 400), (300, 900), (150, 120), (384, 384), (700, 500), (900, 150)),
    *((1600, 1200), (850, 1100), (2304, 2304)),
]


def mapped(size, mode="anyres") -> tuple[VisualToken, ...]:
    try:
        return map_visual_tokens(size, GEOMETRY, mode)
    except ValueError:  # Too elongated.
        with pytest.raises(ValueError):
            num_visual_tokens(*size, GEOMETRY, mode)
        return ()


def boxes(tokens, view: str) -> list[Box]:
    return [token.box for token in tokens if token.view == view and token.box]


@given(sizes, modes)
@settings(deadline=None)
def test_one_entry_per_visual_token(size, mode):
    tokens = mapped(size, mode)
    if not tokens:
        return
    assert len(tokens) == num_visual_tokens(*size, GEOMETRY, mode)
    for token in tokens:
        assert not (token.is_newline and token.box)
        if token.box is not None:
            x0, y0, x1, y1 = token.box
            assert 0 <= x0 < x1 <= size[0]
            assert 0 <= y0 < y1 <= size[1]


@given(sizes)
@settings(deadline=None)
def test_newlines_end_the_rows_of_the_tile_grid(size):
    tokens = mapped(size)
    grid = [token for token in tokens if token.view == "tiles"]
    assert tokens[: SIDE**2] == tuple(t for t in tokens if t.view == "overview")
    for before, token in zip([None, *grid], grid, strict=False):
        starts_row = before is None or before.is_newline
        assert token.row == (0 if before is None else before.row + before.is_newline)
        assert token.column == (0 if starts_row else before.column + 1)
    columns = {token.column for token in grid if token.is_newline}
    assert len(columns) == (1 if grid else 0)
    assert not grid or grid[-1].is_newline


def test_pad_list_ends_with_a_newline():
    tokens = map_visual_tokens((320, 240), GEOMETRY, "pad_list")
    assert tokens[:-1] == map_visual_tokens((320, 240), GEOMETRY, "pad_stacked")
    assert tokens[-1] == VisualToken("overview", 27, 0, True, None)


@given(sizes, modes)
@settings(deadline=None)
def test_patches_cover_the_picture_once(size, mode):
    """All of it in the overview. Unpadding counts in whole patches, on a grid that is
    0.6 pixels per patch too coarse: the tile grid may miss up to a patch per side."""
    tokens = mapped(size, mode)
    width, height = size
    for view in {token.view for token in tokens}:
        found = boxes(tokens, view)
        area = sum((b.x1 - b.x0) * (b.y1 - b.y0) for b in found)
        x0, y0 = min(b.x0 for b in found), min(b.y0 for b in found)
        x1, y1 = max(b.x1 for b in found), max(b.y1 for b in found)
        # A grid of lines does not overlap: if it fills its outline, it covers it.
        assert area == pytest.approx((x1 - x0) * (y1 - y0), rel=1e-9)
        if view == "overview":
            assert (x0, y0, x1, y1) == pytest.approx((0, 0, width, height))
            continue
        canvas = select_best_resolution(size, PINPOINTS)
        fitted = fitted_size(size, canvas)
        missing_x = max(x0, width - x1) * fitted[0] / width
        missing_y = max(y0, height - y1) * fitted[1] / height
        assert max(missing_x, missing_y) < PATCH


@given(st.tuples(st.integers(1, 1500), st.integers(1, 1500)))
@settings(deadline=None, max_examples=30)
def test_fitted_size_is_the_one_that_is_pasted(size):
    canvas_size = select_best_resolution(size, PINPOINTS)
    white = Image.new("L", size, 255).convert("RGB")
    left, top, right, bottom = fit_and_pad(white, canvas_size).getbbox()
    width, height = fitted_size(size, canvas_size)
    assert (right - left, bottom - top) == (width, height)
    assert (left, top) == (
        (canvas_size[0] - width) // 2,
        (canvas_size[1] - height) // 2,
    )


# --- a known pixel ---------------------------------------------------------------


def named_tokens(size, pixel) -> tuple[int, tuple[int, int]]:
    """The tokens that see a pixel's middle, followed step by step through the tiles:
    index in the overview, and (row, column) in the tile grid before it is shrunk
    (maybe outside of it)."""
    (width, height), (x, y) = size, pixel
    row = min(int((y + 0.5) * TILE / height) // PATCH, SIDE - 1)
    column = min(int((x + 0.5) * TILE / width) // PATCH, SIDE - 1)
    overview = row * SIDE + column

    canvas = select_best_resolution(size, PINPOINTS)
    scale = min(canvas[0] / width, canvas[1] / height)
    fitted = [min(math.ceil(s * scale), c) for s, c in zip(size, canvas, strict=True)]
    place = []
    grid = [c // TILE * SIDE for c in canvas]  # Columns, rows.
    for axis in (1, 0):
        shift = (canvas[axis] - fitted[axis]) // 2
        position = int((pixel[axis] + 0.5) * fitted[axis] / size[axis] + shift)
        tile, inside = divmod(position, TILE)
        line = tile * SIDE + min(inside // PATCH, SIDE - 1)
        is_short = (width / height > grid[0] / grid[1]) == (axis == 1)
        cut = 0
        if is_short:
            other = 1 - axis
            used = int(size[axis] * (grid[other] / size[other]))
            cut = (grid[axis] - used) // 2
        place.append(line - cut)
    return overview, (place[0], place[1])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_known_pixels_lie_in_the_patches_that_see_them(size):
    width, height = size
    tokens = map_visual_tokens(size, GEOMETRY)
    grid = [token for token in tokens if token.view == "tiles"]
    num_rows = max(token.row for token in grid) + 1
    num_columns = max(token.column for token in grid)
    whole_rows, whole_columns = unshrunk_grid(size)
    by_place = {(token.row, token.column): token for token in grid}
    pixels = [
        (int(fx * (width - 1)), int(fy * (height - 1)))
        for fx in (0.01, 0.1, 0.37, 0.5, 0.9, 0.99)
        for fy in (0.01, 0.08, 0.5, 0.63, 0.92, 0.99)
    ]
    num_checked = 0
    for x, y in pixels:
        overview, (row, column) = named_tokens(size, (x, y))
        assert contains(tokens[overview].box, x, y)
        if not (0 <= row < whole_rows and 0 <= column < whole_columns):
            continue  # Cut off with the borders.
        # The middle of the patch, on the shrunk grid.
        row = int((row + 0.5) * num_rows / whole_rows)
        column = int((column + 0.5) * num_columns / whole_columns)
        neighbours = [
            by_place[row + i, column + j].box
            for i in (-1, 0, 1)
            for j in (-1, 0, 1)
            if (row + i, column + j) in by_place
        ]
        if (num_rows, num_columns) == (whole_rows, whole_columns):
            assert contains(by_place[row, column].box, x, y)
        else:  # A patch may lie across a line of the shrunk grid.
            assert any(contains(box, x, y) for box in neighbours if box)
        num_checked += 1
    assert num_checked >= 24  # Of 36; one row of them may be cut off on each side.


def unshrunk_grid(size) -> tuple[int, int]:
    columns, rows = (side // TILE for side in select_best_resolution(size, PINPOINTS))
    features = torch.zeros(1 + rows * columns, SIDE**2, 1)
    geometry = AnyresGeometry(PINPOINTS, max_tiles=None)
    merged = merge_tiles(features, size, torch.ones(1), geometry)[SIDE**2 :, 0]
    num_rows = int(merged.sum())  # One newline each.
    return num_rows, len(merged) // num_rows - 1


def contains(box: Box, x: int, y: int) -> bool:
    """Whether the middle of a pixel is in a box."""
    return box.x0 <= x + 0.5 <= box.x1 and box.y0 <= y + 0.5 <= box.y1


# --- through the real tiles ------------------------------------------------------


@pytest.mark.parametrize(
    "size, mode",
    [(size, "anyres") for size in SIZES]
    + [(size, "pad_list") for size in ((320, 240), (240, 330), (500, 500))],
    ids=str,
)
def test_patches_show_the_colours_of_their_boxes(size, mode):
    """A picture whose colours are its coordinates goes through tiling and merging;
    every patch then tells where it is."""
    width, height = size
    picture = np.zeros((height, width, 3))
    picture[..., 0] = (np.arange(width) + 0.5) / width * 255
    picture[..., 1] = ((np.arange(height) + 0.5) / height * 255)[:, None]
    picture[..., 2] = 255  # Less where padding mixes in.
    image = Image.fromarray(picture.round().astype(np.uint8))
    tiles = preprocess(image, GEOMETRY, mode)
    patches = tiles[..., : SIDE * PATCH, : SIDE * PATCH]
    patches = patches.unflatten(2, (SIDE, PATCH)).unflatten(4, (SIDE, PATCH))
    features = patches.mean(dim=(3, 5)).flatten(2).transpose(1, 2)
    seen = merge_tiles(features, size, torch.full((3,), 9.0), GEOMETRY, mode)
    seen = ((seen + 1) / 2).numpy()

    tokens = map_visual_tokens(size, GEOMETRY, mode)
    is_newline = np.array([token.is_newline for token in tokens])
    np.testing.assert_array_equal(is_newline, seen[:, 0] == 5)
    is_picture = ~is_newline & (seen[:, 2] > 0.999)
    shares = np.array([tuple(token.box or [np.nan] * 4) for token in tokens])
    shares /= [width, height, width, height]
    middles = (shares[:, :2] + shares[:, 2:]) / 2
    extents = shares[:, 2:] - shares[:, :2]
    assert not np.isnan(middles[is_picture]).any()
    # Eight bits, and the last patch of a tile is widened by 6 unseen pixels. A shrunk
    # patch is interpolated at its middle, to half a patch.
    error = np.abs(seen[is_picture, :2] - middles[is_picture])
    assert (error <= 1.5 / 255 + 0.3 * extents[is_picture]).all()
    assert np.median(error / extents[is_picture]) < 0.15
    # What holds nothing of the picture is padding: black, or grey 127.
    is_padding = np.isnan(middles[:, 0]) & ~is_newline
    assert (seen[is_padding, 2] < 0.51).all()
    assert is_picture.sum() + is_newline.sum() + is_padding.sum() > 0.8 * len(tokens)


def test_images_without_tokens_are_refused():
    with pytest.raises(ValueError, match="empty"):
        map_visual_tokens((0, 5), GEOMETRY, "pad_list")
    with pytest.raises(ValueError, match="too elongated"):
        map_visual_tokens((20_000, 1), AnyresGeometry(((768, 768),)))
