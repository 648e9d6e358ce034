# SPDX-License-Identifier: Apache-2.0
"""What ``scaling.py`` measures: one thing grows at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

SWEEPS = ("tiles", "gen_length", "concurrency", "images")


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        value: of what the sweep varies.
        tiles: (width, height) of every image, in tiles.
        mode: of the images.
    """

    sweep: str
    value: int
    tiles: tuple[tuple[int, int], ...]
    mode: str
    gen_length: int
    steps: int
    cache: str = "none"
    requests: int = 1


def cases(quick: bool) -> Iterator[Case]:
    """Few steps are enough where all cost the same."""
    steps = 2 if quick else 8
    one = ((1, 1),)
    yield Case("tiles", 1, one, "pad_stacked", 32, steps)
    for shape in [(1, 1), (2, 1)] if quick else [(1, 1), (2, 1), (2, 2), (3, 2)]:
        tiles = 1 + shape[0] * shape[1]
        yield Case("tiles", tiles, (shape,), "anyres", 32, steps)
    for length in (32, 64) if quick else (32, 64, 128, 256):
        yield Case("gen_length", length, one, "pad_stacked", length, length // 8)
    for requests in (1, 4, 8) if quick else (1, 2, 4, 8, 16, 32, 64):
        steps_cached = 8 if quick else 32
        yield Case(
            *("concurrency", requests, one, "pad_stacked", 32, steps_cached),
            cache="prompt",
            requests=requests,
        )
    for images in (1, 2) if quick else (1, 2, 3, 4):
        yield Case("images", images, one * images, "pad_stacked", 32, steps)
