# SPDX-License-Identifier: Apache-2.0
"""Drawings, pixel by pixel, and the survivors of several stages."""

import numpy as np
import pytest
from PIL import Image

from vllm_lladav.model.lladav.anyres import AnyresGeometry
from vllm_lladav.model.lladav.patch_map import Box, VisualToken, map_visual_tokens
from vllm_lladav.tools.inspect import drawing
from vllm_lladav.tools.inspect.drawing import (
    NOT_SCORED,
    RAMP,
    dim_dropped,
    draw,
    draw_image,
    heat_map,
    panel_size,
    relative_ranks,
    token_index,
)
from vllm_lladav.tools.inspect.run import (
    ImageInspection,
    Inspection,
    StageReport,
    follow_stages,
)

PINPOINTS = tuple((384 * a, 384 * b) for a in range(1, 7) for b in range(1, 7))
GEOMETRY = AnyresGeometry(pinpoints=PINPOINTS)


def inspected(size, mode="anyres", kept=None, scores=None) -> ImageInspection:
    width, height = size
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    tokens = map_visual_tokens(size, GEOMETRY, mode)
    if kept is None:
        kept = rng.random(len(tokens)) < 0.25
    if scores is None:
        scores = rng.random(len(tokens)).astype(np.float32)
    return ImageInspection(picture, mode, tokens, scores, kept)


def test_dropped_patches_are_dimmed_and_kept_ones_untouched():
    image = inspected((480, 300))
    size = panel_size(image.picture.size)
    assert size == (480, 300)  # So that nothing is resampled.
    pixels = np.asarray(image.picture)
    for view in ("overview", "tiles"):
        index = token_index(image.tokens, view, image.picture.size, size)
        drawn = dim_dropped(pixels, index, image.kept)
        for number, token in enumerate(image.tokens):
            if token.view != view or token.box is None:
                continue
            # A pixel that the patch certainly holds.
            x = int((token.box.x0 + token.box.x1) / 2)
            y = int((token.box.y0 + token.box.y1) / 2)
            if image.kept[number]:
                assert (drawn[y, x] == pixels[y, x]).all()
            else:
                assert (drawn[y, x] == (0.2 * pixels[y, x]).astype(int)).all()
        share = image.kept[np.unique(index[index >= 0])].mean()
        unchanged = (drawn == pixels).all(axis=2)
        assert unchanged.mean() == pytest.approx(share, abs=0.03)


def test_pixels_that_no_patch_sees_are_dimmed():
    pixels = np.full((1, 2, 3), 200, np.uint8)
    index = np.array([[0, -1]])
    drawn = dim_dropped(pixels, index, np.array([True]))
    assert drawn.tolist() == [[[200] * 3, [40] * 3]]


def test_a_pixel_belongs_to_the_patch_that_holds_its_middle():
    tokens = (
        VisualToken("tiles", 0, 0, False, Box(0, 0, 1.4, 2)),
        VisualToken("tiles", 0, 1, False, Box(1.4, 0, 4, 2)),
        VisualToken("tiles", 0, 2, True, None),
        VisualToken("overview", 0, 0, False, Box(0, 0, 4, 2)),
    )
    index = token_index(tokens, "tiles", (4, 3), (4, 3))
    assert index.tolist() == [[0, 1, 1, 1]] * 2 + [[-1] * 4]
    doubled = token_index(tokens, "tiles", (4, 3), (8, 6))
    assert doubled[0].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert (token_index(tokens, "overview", (4, 3), (4, 3))[:2] == 3).all()


@pytest.mark.parametrize("size", [(1000, 400), (150, 120), (2304, 2304), (3, 1000)])
def test_every_drawn_pixel_of_the_overview_has_a_patch(size):
    tokens = map_visual_tokens(size, GEOMETRY)
    index = token_index(tokens, "overview", size, panel_size(size))
    assert (index >= 0).all()
    assert (np.diff(index, axis=0) >= 0).all() and (np.diff(index, axis=1) >= 0).all()


def test_heat_map_goes_from_the_lowest_to_the_highest_rank():
    index = np.array([[0, 1, 2, 3, -1]])
    scores = np.array([0.5, np.nan, 100, 1], np.float32)
    colours = heat_map(index, scores)[0].tolist()
    middle = RAMP[2].tolist()
    assert colours == [
        *(RAMP[0].tolist(), list(NOT_SCORED), RAMP[-1].tolist(), middle),
        list(NOT_SCORED),
    ]


def test_equal_scores_share_a_rank():
    assert relative_ranks(np.array([0, 1, 0, 0, 1.0])).tolist() == [
        *(0.25, 0.875, 0.25, 0.25, 0.875)
    ]
    assert relative_ranks(np.array([7.0])).tolist() == [0]
    assert relative_ranks(np.array([])).tolist() == []


@pytest.mark.parametrize("mode, num_rows", [("anyres", 2), ("pad_list", 1)])
def test_a_row_per_view(mode, num_rows, monkeypatch):
    """The picture is in the drawing, unchanged where all is kept, once per view."""
    image = inspected((480, 300), mode, kept=None)
    everything = np.ones(len(image.tokens), bool)
    image = ImageInspection(
        image.picture, image.mode, image.tokens, image.scores, everything
    )
    drawn = np.asarray(draw_image(image))
    pixels = np.asarray(image.picture)
    middle = pixels[100:200]  # Edges may have no patch in the tile grid.
    found = [
        top
        for top in range(len(drawn) - 100)
        if (drawn[top : top + 100, :480] == middle).all()
    ]
    assert len(found) == num_rows
    assert drawn.shape[1] >= 2 * 480 + drawing.MARGIN


def test_captions_count_patches_and_newlines():
    tokens = map_visual_tokens((700, 500), GEOMETRY)
    kept = np.zeros(len(tokens), bool)
    kept[:10] = True
    kept[-1] = True
    image = inspected((700, 500), kept=kept)
    assert (
        drawing._kept_caption(image, "overview") == "overview: kept 10 of 729 patches"
    )
    assert drawing._kept_caption(image, "tiles") == (
        "tiles: kept 0 of 2052 patches, 1 of 38 newlines"
    )
    # 384 pixels of a square hold 27 rows of 14; the picture is 192 in the middle.
    image = inspected((400, 200), "pad_list", kept=np.ones(730, bool))
    assert drawing._kept_caption(image, "overview") == (
        f"overview: kept {15 * 27} of {15 * 27} patches, "
        f"{12 * 27} of {12 * 27} patches of padding, 1 of 1 newlines"
    )


def test_images_stand_below_each_other():
    first, second = inspected((480, 300), "pad_list"), inspected((300, 480), "pad_list")
    stages = (StageReport(1, 2, 1460, 365),)
    drawn = draw(Inspection("answer", (first, second), stages))
    assert drawn.height > draw_image(first).height + draw_image(second).height
    assert drawn.width >= 2 * 480 + 3 * drawing.MARGIN


def test_nothing_pruned():
    image = inspected((40, 30), "pad_stacked")
    num_tokens = len(image.tokens)
    image = ImageInspection(
        image.picture,
        image.mode,
        image.tokens,
        np.full(num_tokens, np.nan, np.float32),
        np.ones(num_tokens, bool),
    )
    assert draw(Inspection("", (image,), ())).mode == "RGB"


# --- stages ----------------------------------------------------------------------


def test_later_stages_count_what_is_left():
    scores, kept = follow_stages(
        5,
        [
            (np.array([5, 1, 4, 2, 3.0]), np.array([0, 2, 3, 4])),
            (np.array([10, 40, 30, 20.0]), np.array([1, 3])),
        ],
    )
    assert scores.tolist() == [10, 1, 40, 30, 20]
    assert kept.tolist() == [False, False, True, False, True]


def test_without_stages_all_is_kept():
    scores, kept = follow_stages(3, [])
    assert np.isnan(scores).all() and kept.all()
