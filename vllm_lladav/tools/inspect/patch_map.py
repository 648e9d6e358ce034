# SPDX-License-Identifier: Apache-2.0
"""Where in the original picture every visual token looks.

No vLLM in here.

The inverse of :mod:`vllm_lladav.model.lladav.anyres`. Sizes are (width, height) in
pixels. Along each axis a grid of visual tokens is a list of *lines*, the edges between
its cells: taken first on what the tower sees (a canvas or a square, in pixels), then
moved to the picture and clipped to it.

Two things are not one to one. The tower's patches do not fill a tile (27 of 14
pixels, of 384): the rest, which no patch sees, is given to the last one. And a grid
past the tile limit is shrunk: a cell is then the area that a token stands for, while
its features are interpolated between the at most 2x2 patches around the middle.
"""

import math
from typing import Literal, NamedTuple

import numpy as np

from vllm_lladav.model.lladav.anyres import (
    AnyresGeometry,
    check_size,
    final_grid,
    select_best_resolution,
    tile_layout,
    unpad_margins,
    unpadded_grid,
)
from vllm_lladav.model.lladav.image_modes import ImageMode

View = Literal["overview", "tiles"]
VIEWS: tuple[View, ...] = ("overview", "tiles")


class Box(NamedTuple):
    """A rectangle in the picture: pixels from its left upper corner, floats."""

    x0: float
    y0: float
    x1: float
    y1: float


class VisualToken(NamedTuple):
    """One visual token of an image.

    Attributes:
        view: ``overview`` is the whole image in one tile, ``tiles`` the joined tile
            grid.
        row, column: in the grid of the view. A newline has the column behind the
            last one, or stands alone in the row behind the last one (``pad_list``).
        is_newline: whether it is the learned newline embedding.
        box: None for newlines, and for patches that see nothing but padding.
    """

    view: View
    row: int
    column: int
    is_newline: bool
    box: Box | None


def map_visual_tokens(
    size: tuple[int, int], geometry: AnyresGeometry, mode: ImageMode = "anyres"
) -> tuple[VisualToken, ...]:
    """The visual tokens of a picture, in the order of the prompt.

    Raises:
        ValueError: if the picture cannot be tiled.
    """
    check_size(size)
    if mode == "anyres":
        rows, columns = _tile_lines(size, geometry)
        overview = _grid("overview", *_squeezed_lines(size, geometry))
        return overview + _grid("tiles", rows, columns, with_newlines=True)
    square = _grid("overview", *_square_lines(size, geometry))
    if mode == "pad_stacked":
        return square
    newline = VisualToken("overview", geometry.tile_grid, 0, True, None)
    return (*square, newline)


def _grid(
    view: View, rows: np.ndarray, columns: np.ndarray, with_newlines: bool = False
) -> tuple[VisualToken, ...]:
    """Tokens between lines (``[rows + 1]``, ``[columns + 1]``), row by row."""
    num_columns = len(columns) - 1
    # Plain floats: numpy's are slow one by one.
    ys, xs = rows.tolist(), columns.tolist()
    tokens = []
    for row in range(len(ys) - 1):
        for column in range(num_columns):
            box = Box(xs[column], ys[row], xs[column + 1], ys[row + 1])
            is_empty = box.x0 >= box.x1 or box.y0 >= box.y1
            tokens.append(
                VisualToken(view, row, column, False, None if is_empty else box)
            )
        if with_newlines:
            tokens.append(VisualToken(view, row, num_columns, True, None))
    return tuple(tokens)


def _squeezed_lines(
    size: tuple[int, int], geometry: AnyresGeometry
) -> tuple[np.ndarray, np.ndarray]:
    """Tile 0: (rows, columns), each ``[tile_grid + 1]``, in picture pixels."""
    lines = _patch_lines(1, geometry) / geometry.tile_size
    width, height = size
    return lines * height, lines * width


def _square_lines(
    size: tuple[int, int], geometry: AnyresGeometry
) -> tuple[np.ndarray, np.ndarray]:
    """The same where the picture is centred on a square."""
    side = max(size)
    lines = _patch_lines(1, geometry) * (side / geometry.tile_size)
    width, height = size
    return (
        np.clip(lines - (side - height) // 2, 0, height),
        np.clip(lines - (side - width) // 2, 0, width),
    )


def _tile_lines(
    size: tuple[int, int], geometry: AnyresGeometry
) -> tuple[np.ndarray, np.ndarray]:
    """The joined tile grid: (rows ``[r + 1]``, columns ``[c + 1]``)."""
    num_columns, num_rows = tile_layout(size, geometry)
    side = geometry.tile_grid
    cut_rows, cut_columns = unpad_margins(size, (num_rows * side, num_columns * side))
    unpadded, final = unpadded_grid(size, geometry), final_grid(size, geometry)
    canvas = select_best_resolution(size, geometry.pinpoints)
    fitted = fitted_size(size, canvas)
    rows = _kept_lines(
        _patch_lines(num_rows, geometry), cut_rows, unpadded[0], final[0]
    )
    columns = _kept_lines(
        _patch_lines(num_columns, geometry), cut_columns, unpadded[1], final[1]
    )
    return (
        _to_picture(rows, canvas[1], fitted[1], size[1]),
        _to_picture(columns, canvas[0], fitted[0], size[0]),
    )


def _patch_lines(num_tiles: int, geometry: AnyresGeometry) -> np.ndarray:
    """Edges of the patches of a row of tiles: ``[num_tiles * tile_grid + 1]``,
    canvas pixels."""
    patch = geometry.tile_size // geometry.tile_grid
    tiles = np.arange(num_tiles)[:, None] * geometry.tile_size
    starts = tiles + np.arange(geometry.tile_grid) * patch
    return np.append(starts.ravel(), num_tiles * geometry.tile_size).astype(float)


def _kept_lines(lines: np.ndarray, cut: int, whole: int, shrunk: int) -> np.ndarray:
    """Without the ``cut`` first cells; ``whole`` cells are left, and shrunk to
    ``shrunk`` of equal width: ``[shrunk + 1]``."""
    wanted = cut + np.arange(shrunk + 1) * (whole / shrunk)
    return np.interp(wanted, np.arange(len(lines)), lines)


def _to_picture(lines: np.ndarray, canvas: int, fitted: int, length: int) -> np.ndarray:
    """Canvas pixels to picture pixels along one axis: the picture, ``length`` long,
    takes ``fitted`` pixels in the middle of the canvas."""
    offset = (canvas - fitted) // 2
    return np.clip((lines - offset) * (length / fitted), 0, length)


def fitted_size(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """Size of the picture on its canvas, as ``anyres.fit_and_pad`` resizes it."""
    (width, height), (canvas_width, canvas_height) = size, canvas
    scale_width, scale_height = canvas_width / width, canvas_height / height
    if scale_width < scale_height:
        return canvas_width, min(math.ceil(height * scale_width), canvas_height)
    return min(math.ceil(width * scale_height), canvas_width), canvas_height
