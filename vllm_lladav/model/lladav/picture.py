# SPDX-License-Identifier: Apache-2.0
"""Where the visual tokens of a processed image look."""

import math
from collections.abc import Mapping, Sequence

from vllm_lladav.model.lladav.anyres import tile_layout
from vllm_lladav.model.lladav.config import LladavConfig
from vllm_lladav.model.lladav.image_modes import IMAGE_MODES
from vllm_lladav.model.lladav.patch_map import map_visual_tokens, view_lines
from vllm_lladav.model.lladav.vision import geometry_from_config
from vllm_lladav.model.picture import Grid, Picture


def picture_of(
    config: LladavConfig, fields: Mapping[str, Sequence[int]]
) -> Picture | None:
    """From ``image_sizes`` and ``image_modes`` of the image; None without them."""
    if "image_sizes" not in fields or "image_modes" not in fields:
        return None
    width, height = fields["image_sizes"]
    mode = IMAGE_MODES[fields["image_modes"][0]]
    size, geometry = (width, height), geometry_from_config(config)
    lines = view_lines(size, geometry, mode)
    names = list(lines)
    num_tiles = 1
    if mode == "anyres":
        num_tiles += math.prod(tile_layout(size, geometry))
    return Picture(
        size=size,
        mode=mode,
        num_tiles=num_tiles,
        grids=tuple(
            Grid(view, tuple(columns.tolist()), tuple(rows.tolist()))
            for view, (rows, columns) in lines.items()
        ),
        cells=tuple(
            None
            if token.box is None
            else (names.index(token.view), token.row, token.column)
            for token in map_visual_tokens(size, geometry, mode)
        ),
    )
