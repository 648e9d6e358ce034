# SPDX-License-Identifier: Apache-2.0
"""Scenes and their drawings.

A picture is divided into thirds both ways. In each of the three rows stands one thing:
left, center or right. A thing is a shape, a letter or a digit. Backgrounds, sizes
within the place, shades and distractors (thin grey lines, dots) vary.

Held-out things: of all (colour, kind, place) combinations, one in twenty, chosen by a
hash, never occurs in a training picture; every held-out picture has at least one.
"""

import random
import zlib
from dataclasses import dataclass
from functools import lru_cache
from math import cos, pi, sin
from typing import Literal

from PIL import Image, ImageDraw, ImageFont

Split = Literal["train", "heldout"]
Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (220, 30, 35),
    "green": (30, 160, 50),
    "blue": (35, 70, 225),
    "yellow": (250, 225, 40),
    "purple": (150, 45, 190),
    "pink": (255, 140, 190),
}
SHAPES = ("circle", "square", "triangle", "cross", "star")
LETTERS = tuple("ACEHKLTX")
DIGITS = tuple("2347")
KINDS = (*SHAPES, *LETTERS, *DIGITS)

ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "center", "right")
NUM_PLACES = len(ROWS) * len(COLUMNS)

SIZES = {  # (width, height) in pixels -> share of the pictures
    (96, 96): 10,
    (96, 80): 1,
    (80, 96): 1,
    (192, 96): 2,
    (96, 192): 2,
    (192, 192): 2,
}
_HELD_OUT_ONE_IN = 20


@dataclass(frozen=True)
class Thing:
    """What stands in one place: 0 is the top left, 8 the bottom right one."""

    colour: str
    kind: str
    place: int

    @property
    def row(self) -> str:
        return ROWS[self.place // 3]

    @property
    def column(self) -> str:
        return COLUMNS[self.place % 3]

    @property
    def is_held_out(self) -> bool:
        key = f"{self.colour} {self.kind} {self.place}"
        return zlib.crc32(key.encode()) % _HELD_OUT_ONE_IN == 0


@dataclass(frozen=True)
class Scene:
    """Things in reading order, and where each was drawn."""

    size: tuple[int, int]
    things: tuple[Thing, ...]


@dataclass(frozen=True)
class Drawing:
    """A picture and the box (left, top, right, bottom) of every thing in it."""

    image: Image.Image
    boxes: tuple[tuple[float, float, float, float], ...]


def draw_scene(
    rng: random.Random, split: Split, size: tuple[int, int] | None = None
) -> Scene:
    """Draw the content of a picture at random."""
    if size is None:
        size = rng.choices(list(SIZES), list(SIZES.values()))[0]
    while True:
        # Few colours and kinds in a scene: something to count and to confuse.
        colours = rng.sample(list(COLOURS), rng.randint(2, 3))
        groups = [SHAPES, SHAPES, LETTERS, DIGITS]
        kinds = [rng.choice(rng.choice(groups)) for _ in range(rng.randint(2, 3))]
        things = tuple(
            Thing(rng.choice(colours), rng.choice(kinds), 3 * row + rng.randrange(3))
            for row in range(len(ROWS))
        )
        if any(thing.is_held_out for thing in things) == (split == "heldout"):
            return Scene(size, things)


def draw(scene: Scene, rng: random.Random) -> Drawing:
    """Draw the picture of a scene; everything that the scene leaves open is random."""
    image = _background(rng, scene.size)
    canvas = ImageDraw.Draw(image)
    _distractors(rng, canvas, scene.size)
    cell = scene.size[0] / 3, scene.size[1] / 3
    boxes = []
    for thing in scene.things:
        side = min(cell) * rng.uniform(0.66, 0.9)
        slack = [(length - side) / 2 for length in cell]
        # Wide cells would let things stray far from the middle of their place.
        jitter = [rng.uniform(-1, 1) * min(s, min(cell) * 0.2) * 0.8 for s in slack]
        left = (thing.place % 3) * cell[0] + slack[0] + jitter[0]
        top = (thing.place // 3) * cell[1] + slack[1] + jitter[1]
        colour = _shade(rng, COLOURS[thing.colour], 18)
        _draw_kind(canvas, thing.kind, (left, top), side, colour)
        boxes.append((left, top, left + side, top + side))
    return Drawing(image, tuple(boxes))


def _shade(rng: random.Random, colour: Colour, amount: int) -> Colour:
    red, green, blue = (
        min(255, max(0, value + rng.randint(-amount, amount))) for value in colour
    )
    return red, green, blue


def _background(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Grey, dark or light, in half of the pictures with a gradient."""
    level = rng.choice((rng.randint(0, 50), rng.randint(190, 230)))
    tone = _shade(rng, (level, level, level), 8)
    image = Image.new("RGB", size, tone)
    if rng.random() < 0.5:
        gradient = Image.linear_gradient("L").rotate(rng.choice((0, 90, 180, 270)))
        other = Image.new("RGB", size, _shade(rng, (level, level, level), 30))
        image = Image.composite(image, other, gradient.resize(size))
    return image


def _distractors(
    rng: random.Random, canvas: ImageDraw.ImageDraw, size: tuple[int, int]
) -> None:
    """Thin grey lines and small grey dots behind the things."""
    width, height = size
    for _ in range(rng.choice((0, 0, 1, 2, 3))):
        tone = (rng.randint(90, 160),) * 3
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        if rng.random() < 0.5:
            end = rng.uniform(0, width), rng.uniform(0, height)
            canvas.line((x, y, *end), fill=tone, width=1)
        else:
            radius = rng.uniform(1, 2.5)
            box = (x - radius, y - radius, x + radius, y + radius)
            canvas.ellipse(box, fill=tone)


@lru_cache(maxsize=128)
def _font(height: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(height)


def _draw_kind(
    canvas: ImageDraw.ImageDraw,
    kind: str,
    corner: tuple[float, float],
    side: float,
    colour: Colour,
) -> None:
    left, top = corner
    middle = left + side / 2, top + side / 2
    box = (left, top, left + side, top + side)
    if kind == "circle":
        canvas.ellipse(box, fill=colour)
    elif kind == "square":
        inset = side * 0.06
        canvas.rectangle(
            (left + inset, top + inset, box[2] - inset, box[3] - inset), fill=colour
        )
    elif kind == "triangle":
        canvas.polygon(
            [(middle[0], top), (box[2], box[3]), (left, box[3])], fill=colour
        )
    elif kind == "cross":
        arm = side * 0.17
        canvas.rectangle((left, middle[1] - arm, box[2], middle[1] + arm), fill=colour)
        canvas.rectangle((middle[0] - arm, top, middle[0] + arm, box[3]), fill=colour)
    elif kind == "star":
        radii = (side / 2, side / 5)
        points = [
            (
                middle[0] + radii[i % 2] * sin(i * pi / 5),
                middle[1] - radii[i % 2] * cos(i * pi / 5),
            )
            for i in range(10)
        ]
        canvas.polygon(points, fill=colour)
    else:
        # Capital letters are about 0.72 of the nominal height.
        font = _font(round(side * 1.3))
        canvas.text(
            middle,
            kind,
            fill=colour,
            font=font,
            anchor="mm",
            stroke_width=max(1, round(side / 28)) if side > 20 else 0,
        )
