# SPDX-License-Identifier: Apache-2.0
"""Images to tiles, and tile features to visual tokens. No vLLM in here.

Arithmetic follows the official LLaDA-V code down to float rounding, because
token counts depend on it. All sizes are (width, height) in pixels; grids are
(rows, columns) in visual tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from vllm_lladav.model.lladav.image_modes import ImageMode

# Every image is scaled to [-1, 1] with this mean and deviation (SigLIP).
PIXEL_MEAN = 0.5
PIXEL_STD = 0.5
# The tile grid is shrunk only when it is this much too long on each side.
SHRINK_THRESHOLD = 1.1
# The largest square that Pillow opens without taking it for an attack.
MAX_SQUARE_SIDE = 13_377
# Of an image that is padded to a square, at a time.
STRIP_ROWS = 256


@dataclass(frozen=True)
class AnyresGeometry:
    """What tiling needs to know about a checkpoint."""

    pinpoints: tuple[tuple[int, int], ...]  # candidate canvases (width, height)
    tile_size: int = 384  # pixels
    tile_grid: int = 27  # visual tokens along a tile's side
    max_tiles: int | None = 4  # N of anyres_max_N; None: never shrink

    @property
    def tile_tokens(self) -> int:
        return self.tile_grid**2


def select_best_resolution(
    size: tuple[int, int], pinpoints: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """The canvas that keeps most of the image's pixels, then wastes the fewest.

    The first of equals wins. Upscaling keeps no more than the image has.
    """
    width, height = size
    best: tuple[int, int] | None = None
    best_kept, least_waste = 0, math.inf
    for canvas_width, canvas_height in pinpoints:
        scale = min(canvas_width / width, canvas_height / height)
        fitted = int(width * scale) * int(height * scale)
        kept = min(fitted, width * height)
        waste = canvas_width * canvas_height - kept
        if kept > best_kept or (kept == best_kept and waste < least_waste):
            best, best_kept, least_waste = (canvas_width, canvas_height), kept, waste
    assert best is not None, "pinpoints must not be empty"
    return best


def tile_layout(size: tuple[int, int], geometry: AnyresGeometry) -> tuple[int, int]:
    """(columns, rows) of tiles that the image is cut into, tile 0 not counted."""
    width, height = select_best_resolution(size, geometry.pinpoints)
    return width // geometry.tile_size, height // geometry.tile_size


def unpad_margins(size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) to cut on *each* side of a feature grid: the black borders."""
    (width, height), (rows, columns) = size, grid
    if width / height > columns / rows:
        return (rows - int(height * (columns / width))) // 2, 0
    return 0, (columns - int(width * (rows / height))) // 2


def unpadded_grid(size: tuple[int, int], geometry: AnyresGeometry) -> tuple[int, int]:
    """(rows, columns) of the joined tile grid without the black borders."""
    columns, rows = (n * geometry.tile_grid for n in tile_layout(size, geometry))
    cut_rows, cut_columns = unpad_margins(size, (rows, columns))
    return rows - 2 * cut_rows, columns - 2 * cut_columns


def shrunk_grid(grid: tuple[int, int], geometry: AnyresGeometry) -> tuple[int, int]:
    """(rows, columns) after the bilinear downscale past the tile limit, if any."""
    if geometry.max_tiles is None:
        return grid
    rows, columns = grid
    times = math.sqrt(rows * columns / (geometry.max_tiles * geometry.tile_tokens))
    if times <= SHRINK_THRESHOLD:
        return grid
    return int(rows // times), int(columns // times)


def final_grid(size: tuple[int, int], geometry: AnyresGeometry) -> tuple[int, int]:
    """(rows, columns) of the tile grid as the language model sees it.

    Raises:
        ValueError: if the image is empty or nothing is left of it.
    """
    check_size(size)
    grid = unpadded_grid(size, geometry)
    if min(grid) > 0:
        grid = shrunk_grid(grid, geometry)
    if min(grid) <= 0:
        raise ValueError(
            f"image of {size[0]}x{size[1]} pixels is too elongated: "
            f"its tile grid would have {grid[0]} rows and {grid[1]} columns"
        )
    return grid


def check_size(size: tuple[int, int]) -> None:
    if min(size) < 1:
        raise ValueError(
            f"image of {size[0]}x{size[1]} pixels is empty; both sides must be "
            "at least 1"
        )


def num_visual_tokens(
    width: int, height: int, geometry: AnyresGeometry, mode: ImageMode = "anyres"
) -> int:
    """Visual tokens of an image, from its size alone."""
    check_size((width, height))
    if mode == "pad_stacked":
        return geometry.tile_tokens
    if mode == "pad_list":
        return geometry.tile_tokens + 1
    rows, columns = final_grid((width, height), geometry)
    return geometry.tile_tokens + rows * (columns + 1)


@lru_cache(maxsize=8)
def largest_image(geometry: AnyresGeometry) -> tuple[int, int]:
    """Size of an image with the most visual tokens that any image can have.

    A canvas filled to the brim is not it: its grid is shrunk, while a slightly
    slimmer one just below the threshold stays whole. Candidates fill one side
    of a canvas and stop at every grid line of the other.
    """
    candidates = []
    for width, height in geometry.pinpoints:
        for side in range(1, width // geometry.tile_size * geometry.tile_grid + 1):
            filled = side * geometry.tile_size / geometry.tile_grid
            candidates.append((min(width, math.ceil(filled)), height))
        for side in range(1, height // geometry.tile_size * geometry.tile_grid + 1):
            filled = side * geometry.tile_size / geometry.tile_grid
            candidates.append((width, min(height, math.ceil(filled))))
    counts = {}
    for size in dict.fromkeys(candidates):
        try:
            counts[size] = num_visual_tokens(*size, geometry)
        except ValueError:
            continue
    return max(counts, key=lambda size: counts[size])


# --- pixels ---------------------------------------------------------------------


def preprocess(
    image: Image.Image, geometry: AnyresGeometry, mode: ImageMode = "anyres"
) -> torch.Tensor:
    """An image (any PIL mode) to ``[num_tiles, 3, tile_size, tile_size]``, float32."""
    check_size(image.size)
    if image.mode != "RGB":
        image = image.convert("RGB")
    side = geometry.tile_size
    if mode == "anyres":
        canvas_size = select_best_resolution(image.size, geometry.pinpoints)
        canvas = fit_and_pad(image, canvas_size)
        tiles = [image.resize((side, side), Image.Resampling.BICUBIC)]
        tiles += [
            canvas.crop((x, y, x + side, y + side))
            for y in range(0, canvas_size[1], side)
            for x in range(0, canvas_size[0], side)
        ]
    else:
        tiles = [resize_padded(image, side)]
    return torch.from_numpy(normalise(np.stack([np.asarray(t) for t in tiles])))


def fit_and_pad(image: Image.Image, canvas_size: tuple[int, int]) -> Image.Image:
    """Resize to fit, keeping the aspect, centred on a black canvas."""
    width, height = image.size
    canvas_width, canvas_height = canvas_size
    scale_width, scale_height = canvas_width / width, canvas_height / height
    if scale_width < scale_height:
        fitted = (canvas_width, min(math.ceil(height * scale_width), canvas_height))
    else:
        fitted = (min(math.ceil(width * scale_height), canvas_width), canvas_height)
    canvas = Image.new("RGB", canvas_size, (0, 0, 0))
    corner = (canvas_width - fitted[0]) // 2, (canvas_height - fitted[1]) // 2
    canvas.paste(image.resize(fitted, Image.Resampling.BICUBIC), corner)
    return canvas


def resize_padded(image: Image.Image, tile_size: int) -> Image.Image:
    """The image, centred on a square of the mean colour (grey 127), as a tile.

    A thin image has a square of many times its pixels, of which no more than a strip
    is ever made: Pillow resizes rows first, each by itself, then columns.
    """
    width, height = image.size
    side = max(width, height)
    if side > MAX_SQUARE_SIDE:
        raise ValueError(
            f"image of {width}x{height} pixels cannot be padded to a square; both "
            f"sides must be at most {MAX_SQUARE_SIDE}"
        )
    left, top = (side - width) // 2, (side - height) // 2
    grey = (int(PIXEL_MEAN * 255),) * 3
    narrowed = Image.new("RGB", (tile_size, side), grey)
    for start in range(top, top + height, STRIP_ROWS):
        rows = min(STRIP_ROWS, top + height - start)
        strip = Image.new("RGB", (side, rows), grey)
        strip.paste(image, (left, top - start))
        strip = strip.resize((tile_size, rows), Image.Resampling.BICUBIC)
        narrowed.paste(strip, (0, start))
    return narrowed.resize((tile_size, tile_size), Image.Resampling.BICUBIC)


def normalise(tiles: np.ndarray) -> np.ndarray:
    """``[n, h, w, 3]`` uint8 to ``[n, 3, h, w]`` float32 in [-1, 1], contiguous: else
    vLLM would copy it on the thread that serves all requests."""
    scaled = (tiles.transpose(0, 3, 1, 2) * (1 / 255)).astype(np.float32, order="C")
    return (scaled - np.float32(PIXEL_MEAN)) / np.float32(PIXEL_STD)


# --- features -------------------------------------------------------------------


def merge_tiles(
    features: torch.Tensor,
    size: tuple[int, int],
    newline: torch.Tensor,
    geometry: AnyresGeometry,
    mode: ImageMode = "anyres",
) -> torch.Tensor:
    """Projected tile features to the embeddings that stand for one image.

    Args:
        features: ``[num_tiles, tile_tokens, hidden]``, tile 0 first.
        size: of the original image, (width, height) in pixels.
        newline: ``[hidden]``, the learned ``image_newline``.

    Returns:
        ``[num_visual_tokens, hidden]`` in the features' dtype.
    """
    newline = newline.to(features.dtype)
    base = features[0]
    if mode == "pad_stacked":
        return base
    if mode == "pad_list":
        return torch.cat([base, newline[None]])

    columns, rows = tile_layout(size, geometry)
    side, hidden = geometry.tile_grid, features.shape[-1]
    assert features.shape[0] == 1 + rows * columns, (
        f"{features.shape[0]} tiles for a grid of {rows}x{columns}"
    )
    grid = features[1:].view(rows, columns, side, side, hidden)
    grid = grid.permute(4, 0, 2, 1, 3).reshape(hidden, rows * side, columns * side)

    cut_rows, cut_columns = unpad_margins(size, (rows * side, columns * side))
    grid = grid[
        :,
        cut_rows : grid.shape[1] - cut_rows,
        cut_columns : grid.shape[2] - cut_columns,
    ]
    target = final_grid(size, geometry)
    if target != tuple(grid.shape[1:]):
        grid = F.interpolate(grid[None], size=target, mode="bilinear")[0]
    lines = newline[:, None, None].expand(hidden, target[0], 1)
    return torch.cat([base, torch.cat([grid, lines], dim=2).flatten(1).T])
