# SPDX-License-Identifier: Apache-2.0
"""What the patches of a picture's tiles show."""

import random
from dataclasses import dataclass

import torch

from examples.tiny import pictures
from examples.tiny.model import GEOMETRY
from examples.tiny.pictures import Drawing, Scene
from vllm_lladav.model.lladav.anyres import preprocess, select_best_resolution


@dataclass(frozen=True)
class PatchBatch:
    """Tiles and what their patches show, for the tower alone.

    Attributes:
        tiles: ``[n, 3, tile_size, tile_size]`` float32.
        labels: ``[n, tile_tokens, 4]`` int64, of the thing in a patch: colour, kind,
            row and column of its place, each counted from 1; 0 is nothing, -1 not to
            be told from the tile.
    """

    tiles: torch.Tensor
    labels: torch.Tensor


def make_patch_batch(num_pictures: int, seed: str, step: int) -> PatchBatch:
    rng = random.Random(f"{seed} patches {step}")
    tiles, labels = [], []
    for _ in range(num_pictures):
        scene = pictures.draw_scene(rng, "train")
        drawing = pictures.draw(scene, rng)
        found = preprocess(drawing.image, GEOMETRY)
        # Where a square picture fills one tile, both tiles are the same.
        first = 1 if scene.size == (96, 96) else 0
        tiles.append(found[first:])
        shown = patch_things(scene, drawing)
        for number, tile in enumerate(shown[first:], start=first):
            # One tile of several does not know where it is in the picture.
            knows_place = number == 0 or len(shown) == 2
            labels.append([_numbers(scene, index, knows_place) for index in tile])
    return PatchBatch(torch.cat(tiles), torch.tensor(labels))


def patch_things(scene: Scene, drawing: Drawing) -> list[list[int | None]]:
    """Per tile and patch the number of the thing around the patch's centre."""
    side, grid = GEOMETRY.tile_size, GEOMETRY.tile_grid
    width, height = scene.size
    canvas_width, canvas_height = select_best_resolution(scene.size, GEOMETRY.pinpoints)
    scale = min(canvas_width / width, canvas_height / height)
    left = (canvas_width - width * scale) / 2
    top = (canvas_height - height * scale) / 2
    centres = [(i + 0.5) * side / grid for i in range(grid)]
    # Per tile, where the centres are in the picture: columns, rows.
    places = [
        ([x * width / side for x in centres], [y * height / side for y in centres])
    ]
    for corner_y in range(0, canvas_height, side):
        for corner_x in range(0, canvas_width, side):
            columns = [(x + corner_x - left) / scale for x in centres]
            rows = [(y + corner_y - top) / scale for y in centres]
            places.append((columns, rows))
    margin = 0.02 * min(width, height)
    found = []
    for columns, rows in places:
        tile: list[int | None] = [None] * grid**2
        for index, (x0, y0, x1, y1) in enumerate(drawing.boxes):
            inside = [i for i, x in enumerate(columns) if x0 - margin < x < x1 + margin]
            for j, y in enumerate(rows):
                if y0 - margin < y < y1 + margin:
                    for i in inside:
                        tile[j * grid + i] = index
        found.append(tile)
    return found


def _numbers(scene: Scene, index: int | None, knows_place: bool) -> tuple[int, ...]:
    """As in `PatchBatch.labels`."""
    if index is None:
        return 0, 0, 0, 0
    thing = scene.things[index]
    colour = list(pictures.COLOURS).index(thing.colour)
    row, column = divmod(thing.place, 3) if knows_place else (-2, -2)
    return 1 + colour, 1 + pictures.KINDS.index(thing.kind), 1 + row, 1 + column
