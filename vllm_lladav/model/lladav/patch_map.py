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
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

from vllm_lladav.model.lladav.anyres import (
    AnyresGeometry,
    check_size,
    final_grid,
    select_best_resolution,
    tile_layout,
    unpad_margins,
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
    has_newlines = {"overview": False, "tiles": True}
    tokens = [
        token
        for view, (rows, columns) in view_lines(size, geometry, mode).items()
        for token in _grid(view, rows, columns, has_newlines[view])
    ]
    if mode == "pad_list":
        tokens.append(VisualToken("overview", geometry.tile_grid, 0, True, None))
    return tuple(tokens)


def view_lines(
    size: tuple[int, int], geometry: AnyresGeometry, mode: ImageMode = "anyres"
) -> dict[View, tuple[np.ndarray, np.ndarray]]:
    """Edges of the rows and of the columns of every view, in picture pixels, in the
    order of the prompt.

    Raises:
        ValueError: if the picture cannot be tiled.
    """
    check_size(size)
    width, height = size
    sides = (height, width)
    if mode != "anyres":
        rows, columns = (_tile_0(geometry, side, max(size)) for side in sides)
        return {"overview": (rows, columns)}
    rows, columns = (_tile_0(geometry, side, side) for side in sides)
    return {"overview": (rows, columns), "tiles": _tile_lines(size, geometry)}


def _grid(
    view: View, rows: np.ndarray, columns: np.ndarray, with_newlines: bool
) -> Iterator[VisualToken]:
    """Tokens between lines (``[rows + 1]``, ``[columns + 1]``), row by row."""
    # Plain floats: numpy's are slow one by one.
    for row, (y0, y1) in enumerate(pairwise(rows.tolist())):
        for column, (x0, x1) in enumerate(pairwise(columns.tolist())):
            box = Box(x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None
            yield VisualToken(view, row, column, False, box)
        if with_newlines:
            yield VisualToken(view, row, len(columns) - 1, True, None)


def _tile_0(geometry: AnyresGeometry, length: int, side: int) -> np.ndarray:
    """Along an axis, ``[tile_grid + 1]``, picture pixels: the picture, ``length`` long,
    is in the middle of ``side`` pixels, which are squeezed to one tile."""
    lines = _patch_lines(1, geometry) * side / geometry.tile_size
    return _to_picture(lines, side, length, length)


def _tile_lines(
    size: tuple[int, int], geometry: AnyresGeometry
) -> tuple[np.ndarray, np.ndarray]:
    """The joined tile grid: (rows ``[r + 1]``, columns ``[c + 1]``)."""
    columns, rows = (_patch_lines(n, geometry) for n in tile_layout(size, geometry))
    cut_rows, cut_columns = unpad_margins(size, (len(rows) - 1, len(columns) - 1))
    num_rows, num_columns = final_grid(size, geometry)
    rows = _kept_lines(rows, cut_rows, num_rows)
    columns = _kept_lines(columns, cut_columns, num_columns)
    canvas = select_best_resolution(size, geometry.pinpoints)
    fitted = fitted_size(size, canvas)
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


def _kept_lines(lines: np.ndarray, cut: int, num_cells: int) -> np.ndarray:
    """Without ``cut`` cells on each side; the others are shrunk to ``num_cells`` of
    equal width: ``[num_cells + 1]``."""
    last = len(lines) - 1
    wanted = np.linspace(cut, last - cut, num_cells + 1)
    return np.interp(wanted, np.arange(last + 1), lines)


def _to_picture(lines: np.ndarray, canvas: int, fitted: int, length: int) -> np.ndarray:
    """Canvas pixels to picture pixels along one axis: the picture, ``length`` long,
    takes ``fitted`` pixels in the middle of the canvas."""
    offset = (canvas - fitted) // 2
    return np.clip((lines - offset) * length / fitted, 0, length)


def fitted_size(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """Size of the picture on its canvas, as ``anyres.fit_and_pad`` resizes it."""
    (width, height), (canvas_width, canvas_height) = size, canvas
    scale = min(canvas_width / width, canvas_height / height)
    return (
        min(math.ceil(width * scale), canvas_width),
        min(math.ceil(height * scale), canvas_height),
    )
