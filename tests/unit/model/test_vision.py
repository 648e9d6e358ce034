# SPDX-License-Identifier: Apache-2.0
"""Tower, projector and merge against the embeddings of the official code."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import (
    cleanup_dist_env_and_memory,
    init_distributed_environment,
    initialize_model_parallel,
    model_parallel_is_initialized,
)
from vllm.model_executor.models.utils import AutoWeightsLoader
from vllm.utils.network_utils import get_open_port

from tests.golden.cases import IMAGE_TOKEN, GoldenCase, load_cases
from vllm_lladav.model.lladav import vision
from vllm_lladav.model.lladav.anyres import preprocess
from vllm_lladav.model.lladav.config import LladavConfig
from vllm_lladav.model.lladav.image_modes import IMAGE_MODES
from vllm_lladav.model.lladav.model import LlavaLLaDAModelLM
from vllm_lladav.model.lladav.vision import (
    LladavVision,
    is_unused_weight,
    weight_shapes,
)

IMAGE_CASES = [case for case in load_cases().values() if case.images]


@pytest.fixture(scope="module")
def weights(tiny_checkpoint: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(tiny_checkpoint.glob("*.safetensors")):
        found.update(load_file(file))
    return found


@pytest.fixture(scope="module")
def model(
    tiny_checkpoint: Path, weights: dict[str, torch.Tensor]
) -> Iterator[LladavVision]:
    with set_current_vllm_config(VllmConfig()), torch.inference_mode():
        # An engine that lives in this process has done it already.
        is_alone = not model_parallel_is_initialized()
        if is_alone:
            init_distributed_environment(
                world_size=1,
                rank=0,
                distributed_init_method=f"tcp://127.0.0.1:{get_open_port()}",
                local_rank=0,
                backend="gloo",
            )
            initialize_model_parallel(1, 1)
        config = LladavConfig.from_pretrained(tiny_checkpoint)
        whole = torch.nn.ModuleDict({"vision": LladavVision(config).float()})
        loaded = AutoWeightsLoader(whole).load_weights(
            [(name, weights[name]) for name in weight_shapes(config)],
            mapper=LlavaLLaDAModelLM.hf_to_vllm_mapper,
        )
        assert loaded == {name for name, _ in whole.named_parameters()}
        (model,) = whole.values()
        for module in model.modules():  # as vLLM's loader does
            if (method := getattr(module, "quant_method", None)) is not None:
                method.process_weights_after_loading(module)
        yield model
        if is_alone:
            cleanup_dist_env_and_memory()


def embed(model: LladavVision, case: GoldenCase) -> list[torch.Tensor]:
    images = [Image.open(path) for path in case.image_paths]
    tiles = [preprocess(i, model.geometry, case.image_mode) for i in images]
    mode = IMAGE_MODES.index(case.image_mode)
    return model(tiles, [i.size for i in images], [mode] * len(images))


@pytest.mark.parametrize("case", IMAGE_CASES, ids=lambda case: case.name)
def test_merged_embeddings_equal_the_official_ones(
    case: GoldenCase, model: LladavVision, weights: dict[str, torch.Tensor]
):
    visual = iter(embed(model, case))
    table = weights["model.embed_tokens.weight"].float()
    rows = torch.cat(
        [
            next(visual) if token == IMAGE_TOKEN else table[token][None]
            for token in case.input_ids
        ]
    )[: case.prompt_len]
    expected = case.tensors
    sampled = rows[expected["embeds_rows_index"]].numpy()
    np.testing.assert_allclose(sampled, expected["embeds_rows"], atol=1e-4)
    sums = rows.double().sum(1).numpy()
    np.testing.assert_allclose(sums, expected["embeds_row_sum"], atol=1e-4)


@pytest.mark.parametrize(
    "case",
    [case for case in IMAGE_CASES if "vision_rows" in case.tensors],
    ids=lambda case: case.name,
)
def test_tower_features_equal_the_official_ones(case: GoldenCase, model: LladavVision):
    tiles = torch.cat(
        [
            preprocess(Image.open(path), model.geometry, case.image_mode)
            for path in case.image_paths
        ]
    )
    features = model.tower(tiles)[:, case.tensors["vision_rows_index"]]
    np.testing.assert_allclose(features, case.tensors["vision_rows"], atol=1e-4)


def test_chunks_do_not_matter(model: LladavVision, golden_cases, monkeypatch):
    """Tiles of several images share a chunk; an image spans several chunks."""
    cases = [golden_cases[name] for name in ("img_two_pad_list", "img_strip")]
    whole = [embedding for case in cases for embedding in embed(model, case)]
    monkeypatch.setattr(vision, "TILES_PER_FORWARD", 3)
    images = [Image.open(path) for case in cases for path in case.image_paths]
    modes = ["pad_list", "pad_list", "anyres"]
    tiles = [
        preprocess(image, model.geometry, mode)
        for image, mode in zip(images, modes, strict=True)
    ]
    together = model(
        tiles,
        torch.tensor([image.size for image in images]),
        torch.tensor([IMAGE_MODES.index(mode) for mode in modes]),
    )
    for one, other in zip(whole, together, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_every_vision_tensor_of_the_file_is_accounted_for(
    tiny_checkpoint: Path, weights: dict[str, torch.Tensor]
):
    decoder = ("model.layers.", "model.embed_tokens.", "model.norm.", "lm_head.")
    ours = {name for name in weights if not name.startswith(decoder)}
    needed = set(weight_shapes(LladavConfig.from_pretrained(tiny_checkpoint)))
    assert needed <= ours
    assert all(is_unused_weight(name) for name in ours - needed)
    assert not any(is_unused_weight(name) for name in needed)


def test_given_embeddings_pass_through(model: LladavVision):
    embeds = torch.ones(1, 5, 128, dtype=torch.bfloat16)
    (found,) = model(image_embeds=embeds)
    assert found.dtype == torch.float32
    assert torch.equal(found, embeds[0].float())
