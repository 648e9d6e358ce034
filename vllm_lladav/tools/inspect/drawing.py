# SPDX-License-Identifier: Apache-2.0
"""The drawing of an inspection: what was kept, and the scores.

Every image gets one row per view (overview, tiles). On the left is the picture, dimmed
where patches were dropped or where no patch looks; on the right are the scores.

Scores are coloured by their rank among all visual tokens of the image, because the
rank decides what is kept, and because a few tokens draw most of the attention: on a
linear scale all others would look the same.
"""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from vllm_lladav.model.lladav.patch_map import VIEWS, View, VisualToken
from vllm_lladav.tools.inspect.run import ImageInspection, Inspection

PANEL = 480
"""Longer side of a picture, in pixels."""
MARGIN = 12
FONT_SIZE = 14
LINE_HEIGHT = 18
LEGEND = (160, LINE_HEIGHT)
INK, PAPER = (32, 32, 32), (255, 255, 255)

DIMMED = 0.2
"""How bright dropped patches are, of their own brightness."""
NOT_SCORED = (190, 190, 190)

RAMP = np.array(
    [(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)]
)
"""Colours from the lowest to the highest score, evenly spaced: dark to light, so
that it also reads without colour vision."""


def draw(inspection: Inspection) -> Image.Image:
    """A picture of all images of an inspection, below each other, with the cuts."""
    images = [
        draw_image(image, f"image {number}")
        for number, image in enumerate(inspection.images, start=1)
    ]
    drawing = _below(_text(*inspection.describe_stages()), *images)
    return ImageOps.expand(drawing, MARGIN, PAPER)


def draw_image(image: ImageInspection, title: str = "image") -> Image.Image:
    """A picture of one image: a header, and a row of panels per view."""
    width, height = image.picture.size
    header = (
        f"{title}: {width}x{height} pixels, {image.mode}, {int(image.kept.sum())} of "
        f"{len(image.kept)} visual tokens kept"
    )
    shown = {token.view for token in image.tokens}
    views = [_draw_view(image, view) for view in VIEWS if view in shown]
    return _below(_text(header), *views)


def _draw_view(image: ImageInspection, view: View) -> Image.Image:
    size = panel_size(image.picture.size)
    index = token_index(image.tokens, view, image.picture.size, size)
    picture = image.picture.resize(size, Image.Resampling.BICUBIC)
    left = _below(
        _text(_kept_caption(image, view)),
        Image.fromarray(dim_dropped(np.asarray(picture), index, image.kept)),
    )
    right = _below(
        _text(f"{view}: scores, coloured by rank"),
        Image.fromarray(heat_map(index, image.scores)),
        _legend(image.scores),
    )
    return _beside(left, right)


def _kept_caption(image: ImageInspection, view: View) -> str:
    """Such as ``tiles: kept 300 of 1026 patches, 2 of 38 newlines``."""
    kinds: dict[str, list[bool]] = {
        name: [] for name in ("patches", "patches of padding", "newlines")
    }
    for token, kept in zip(image.tokens, image.kept, strict=True):
        if token.view == view:
            patch = "patches of padding" if token.box is None else "patches"
            kinds["newlines" if token.is_newline else patch].append(bool(kept))
    parts = [f"{sum(k)} of {len(k)} {name}" for name, k in kinds.items() if k]
    return f"{view}: kept {', '.join(parts)}"


# --- pixels ---------------------------------------------------------------------


def panel_size(size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) in pixels at which a picture of this size is drawn."""
    scale = PANEL / max(size)
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def token_index(
    tokens: Sequence[VisualToken],
    view: View,
    size: tuple[int, int],
    drawn: tuple[int, int],
) -> np.ndarray:
    """The visual token whose patch holds the middle of each drawn pixel.

    Args:
        size: of the original picture, (width, height).
        drawn: size at which it is drawn.

    Returns:
        ``[drawn height, drawn width]``, int: index into ``tokens``; -1 where no
        patch of the view looks.
    """
    scale = drawn[0] / size[0], drawn[1] / size[1]
    index = np.full(drawn[::-1], -1)
    for number, token in enumerate(tokens):
        if token.view == view and token.box is not None:
            middles = np.array(token.box) * (*scale, *scale) - 0.5
            # A line that is meant to hit a middle must not miss it by a rounding error.
            x0, y0, x1, y1 = np.ceil(middles - 1e-6).astype(int)
            index[y0:y1, x0:x1] = number
    return index


def dim_dropped(pixels: np.ndarray, index: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The picture, ``[h, w, 3]`` uint8, darker where no patch was kept.

    Args:
        pixels: ``[h, w, 3]`` uint8.
        index: ``[h, w]``, as :func:`token_index` returns it.
        kept: ``[n]``, bool, by visual token.
    """
    is_kept = (index >= 0) & kept[index]
    return np.where(is_kept[..., None], pixels, (DIMMED * pixels).astype(np.uint8))


def heat_map(index: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The colour of the score of each pixel's patch, ``[h, w, 3]`` uint8.

    Args:
        index: ``[h, w]``, as :func:`token_index` returns it.
        scores: ``[n]``, by visual token; nan where there is none.
    """
    colours = np.full((len(scores) + 1, 3), NOT_SCORED, np.uint8)
    is_scored = np.isfinite(scores)
    colours[:-1][is_scored] = ramp(relative_ranks(scores[is_scored]))
    return colours[index]  # -1, no patch, is the last row


def relative_ranks(scores: np.ndarray) -> np.ndarray:
    """Ranks of scores ``[n]``, from 0 (lowest) to 1 (highest); equal scores share their
    middle rank."""
    ordered = np.sort(scores)
    lower = np.searchsorted(ordered, scores, side="left")
    not_higher = np.searchsorted(ordered, scores, side="right")
    return (lower + not_higher - 1) / 2 / max(len(scores) - 1, 1)


def ramp(values: np.ndarray) -> np.ndarray:
    """Colours, ``[n, 3]`` uint8, of values ``[n]`` from 0 to 1."""
    stops = np.linspace(0, 1, len(RAMP))
    channels = [np.interp(values, stops, RAMP[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


# --- layout ---------------------------------------------------------------------


def _text(*lines: str) -> Image.Image:
    font = ImageFont.load_default(FONT_SIZE)
    width = max(math.ceil(font.getlength(line)) for line in lines)
    label = Image.new("RGB", (width, LINE_HEIGHT * len(lines)), PAPER)
    pen = ImageDraw.Draw(label)
    for number, line in enumerate(lines):
        pen.text((0, number * LINE_HEIGHT), line, fill=INK, font=font)
    return label


def _legend(scores: np.ndarray) -> Image.Image:
    """The ramp from the lowest to the highest score."""
    found = scores[np.isfinite(scores)]
    if not len(found):
        return _text("no scores")
    width, height = LEGEND
    bar = Image.fromarray(ramp(np.linspace(0, 1, width))[None]).resize((width, height))
    return _beside(_text(f"{found.min():.3g}"), bar, _text(f"{found.max():.3g}"))


def _joined(*blocks: Image.Image, axis: int, gap: int) -> Image.Image:
    """Blocks beside (axis 0) or below (axis 1) each other."""
    size = [max(sides) for sides in zip(*(block.size for block in blocks), strict=True)]
    size[axis] = sum(block.size[axis] + gap for block in blocks) - gap
    joined = Image.new("RGB", (size[0], size[1]), PAPER)
    corner = [0, 0]
    for block in blocks:
        joined.paste(block, (corner[0], corner[1]))
        corner[axis] += block.size[axis] + gap
    return joined


_beside = partial(_joined, axis=0, gap=MARGIN)
_below = partial(_joined, axis=1, gap=MARGIN // 2)
