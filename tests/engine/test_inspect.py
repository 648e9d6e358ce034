# SPDX-License-Identifier: Apache-2.0
"""Inspections of real requests, and whether patches are where the map says."""

import numpy as np
import pytest
import torch
from PIL import Image
from vllm.exceptions import VLLMValidationError

from vllm_lladav.model.lladav.anyres import num_visual_tokens, preprocess
from vllm_lladav.model.lladav.image_modes import IMAGE_MODES
from vllm_lladav.model.lladav.patch_map import Box, map_visual_tokens
from vllm_lladav.tools.inspect.drawing import draw
from vllm_lladav.tools.inspect.run import inspect_pruning


@pytest.mark.parametrize("name", ["prune_r50_k2_all", "prune_r75_k3_all"])
def test_scores_and_kept_tokens_are_the_recorded_ones(engine, golden_cases, name):
    case = golden_cases[name]
    found = inspect_pruning(
        engine.llm,
        case.image_paths,
        case.messages[0],
        gen_length=case.generate.gen_length,
        steps=case.generate.steps,
        prune_rate=case.prune.ratio,
        prune_layer=case.prune.layer,
        prune_queries=case.prune.queries,
    )
    (image,) = found.images
    assert (image.picture.size, image.mode) == ((700, 500), "anyres")
    expected = case.tensors
    assert np.flatnonzero(image.kept).tolist() == list(expected["prune_kept_visual"])
    np.testing.assert_allclose(image.scores, expected["prune_score"], rtol=1e-3)
    (stage,) = found.stages
    assert (stage.step, stage.layer) == (1, case.prune.layer)
    assert stage.num_seen == case.prune_result.n_visual == len(image.tokens)
    assert stage.num_kept == case.prune_result.n_kept
    assert found.answer == case.output_text


def test_stages_and_several_images(engine, golden_cases):
    """Stages in one step and in a later one; images share the cuts."""
    paths = golden_cases["img_two_pad_list"].image_paths
    found = inspect_pruning(
        engine.llm,
        [Image.open(path) for path in paths],
        "What?",
        image_mode="pad_list",
        gen_length=8,
        prune_stages="1:1:0.5,1:3:0.5,3:2:0.5",
    )
    assert [(s.step, s.layer, s.num_seen, s.num_kept) for s in found.stages] == [
        *((1, 1, 1460, 730), (1, 3, 730, 365), (3, 2, 365, 183))
    ]
    assert [len(image.tokens) for image in found.images] == [730, 730]
    assert sum(int(image.kept.sum()) for image in found.images) == 183
    assert all(image.kept.any() for image in found.images)
    assert all(np.isfinite(image.scores).all() for image in found.images)
    one = draw(found)
    assert one.height > one.width


def test_earlier_scores_stay_where_a_token_was_dropped(engine, golden_cases):
    """The first stage of two is the only one of a shorter schedule."""
    paths = golden_cases["img_square"].image_paths
    first, both = (
        inspect_pruning(
            engine.llm, paths, "What?", gen_length=8, prune_stages=stages
        ).images[0]
        for stages in ("1:1:0.5", "1:1:0.5,2:1:0.5")
    )
    assert not (both.kept & ~first.kept).any()
    np.testing.assert_array_equal(both.scores[~first.kept], first.scores[~first.kept])
    assert (both.scores[first.kept] != first.scores[first.kept]).any()
    # The last stage's scores say who is left.
    left = both.scores[first.kept]
    assert left[both.kept[first.kept]].min() >= left[~both.kept[first.kept]].max()


def test_nothing_pruned(engine, golden_cases):
    paths = golden_cases["img_square"].image_paths
    found = inspect_pruning(engine.llm, paths, "What?", gen_length=2, prune_rate=0.0)
    assert found.stages == ()
    assert found.images[0].kept.all()
    assert np.isnan(found.images[0].scores).all()


def test_what_the_engine_refuses(engine, golden_cases):
    paths = golden_cases["img_square"].image_paths
    for pruning, message in (
        ({"prune_rate": 1.5}, "prune_rate must be at least 0"),
        ({"prune_layer": 5}, "at most 4, the model's depth"),
        ({"prune_ratio": 0.5}, "unknown name in vllm_xargs: prune_ratio"),
    ):
        with pytest.raises(VLLMValidationError, match=message):
            inspect_pruning(engine.llm, paths, "What?", **pruning)
    with pytest.raises(ValueError, match="image_mode='wrong'"):
        inspect_pruning(engine.llm, paths, "What?", image_mode="wrong")
    with pytest.raises(ValueError, match="at least one image"):
        inspect_pruning(engine.llm, [], "What?")
    state = engine.core.model_executor.driver_worker.worker.model_runner.model_state
    assert state.on_pruned is None


# --- a known corner --------------------------------------------------------------

# Wide, tall, small and unshrunk; shrunk grids; padded to a square. (On the largest
# canvases the mark fills so much of a tile that the rest of it follows.)
PLACES = [
    *(((700, 500), "anyres"), ((1000, 400), "anyres"), ((300, 900), "anyres")),
    *(((150, 120), "anyres"), ((1600, 1200), "anyres"), ((850, 1100), "anyres")),
    *(((320, 240), "pad_stacked"), ((240, 330), "pad_list")),
]


@pytest.mark.parametrize("size, mode", PLACES, ids=str)
def test_a_changed_corner_changes_its_own_tokens_most(engine, size, mode):
    """A grey picture gets a pattern in one corner. Attention in the tower spreads
    the change over the tile, but the embeddings that change most are those of the
    patches that the map puts into the corner."""
    width, height = size
    geometry = engine.model.vision.geometry
    tokens = map_visual_tokens(size, geometry, mode)
    grey = np.full((height, width, 3), 128, np.uint8)
    before = embed(engine.model, grey, mode)
    assert len(before) == len(tokens) == num_visual_tokens(*size, geometry, mode)
    mark_width, mark_height = width // 12, height // 12
    for x, y in (
        (0, 0),
        (width - mark_width, 0),
        (0, height - mark_height),
        (width - mark_width, height - mark_height),
    ):
        mark = Box(x, y, x + mark_width, y + mark_height)
        changed = grey.copy()
        rows, columns = np.indices((mark_height, mark_width))
        # Stripes of about half a patch, at every size.
        stripes = (rows * 648 // height + columns * 648 // width) // 12 % 2 * 255
        changed[y : y + mark_height, x : x + mark_width] = stripes[..., None]
        change = np.linalg.norm(embed(engine.model, changed, mode) - before, axis=1)
        for view in {token.view for token in tokens}:
            inside, outside = [], []
            for token, difference in zip(tokens, change, strict=True):
                if token.view != view or token.box is None:
                    continue
                if covers(mark, token.box):
                    inside.append(difference)
                elif not touches(mark, token.box):
                    outside.append(difference)
            assert inside, (size, view)
            assert min(inside) > max(outside), (view, mark)


def embed(model, pixels: np.ndarray, mode) -> np.ndarray:
    """``[num_visual_tokens, hidden]``, float32."""
    image = Image.fromarray(pixels)
    tiles = preprocess(image, model.vision.geometry, mode)
    with torch.inference_mode():
        (embeddings,) = model.embed_multimodal(
            pixel_values=[tiles],
            image_sizes=[image.size],
            image_modes=[IMAGE_MODES.index(mode)],
        )
    return embeddings.float().numpy()


def covers(mark: Box, box: Box) -> bool:
    return (
        mark.x0 <= box.x0
        and box.x1 <= mark.x1
        and mark.y0 <= box.y0
        and box.y1 <= mark.y1
    )


def touches(mark: Box, box: Box) -> bool:
    """Whether the box reaches into the mark, or is less than its own size away:
    scaling and the shrinking of grids blur by as much."""
    width, height = box.x1 - box.x0, box.y1 - box.y0
    return (
        box.x0 - width < mark.x1
        and box.x1 + width > mark.x0
        and box.y0 - height < mark.y1
        and box.y1 + height > mark.y0
    )
