# SPDX-License-Identifier: Apache-2.0
"""The checkpoint's config: read as it is, refused where it is not supported."""

import json
import pickle
from pathlib import Path

import pytest
from transformers import AutoConfig
from vllm.transformers_utils.config import get_config

from vllm_lladav.model.lladav.config import (
    LladavConfig,
    parse_pinpoints,
    register_config,
)
from vllm_lladav.model.lladav.validation import validate_config


@pytest.fixture(scope="module")
def config(tiny_checkpoint: Path) -> LladavConfig:
    register_config()
    register_config()  # idempotent
    return get_config(str(tiny_checkpoint), trust_remote_code=False)


def test_official_config_is_read_as_it_is(config: LladavConfig, tiny_checkpoint: Path):
    official = json.loads((tiny_checkpoint / "config.json").read_text())
    assert isinstance(config, LladavConfig)
    # Renamed or dropped by transformers, or checked below.
    renamed = ("torch_dtype", "rope_scaling", "use_cache", "bos_token_id")
    for name in renamed:
        official.pop(name)
    assert {name: getattr(config, name) for name in official} == official
    assert config.head_dim == 32
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 500000.0}
    assert config.mask_token_id == 126336
    assert sorted(config.banned_token_ids) == [126080, 126081, 126346, 126347]
    assert config.bos_token_id is None  # 128000 is no id of this vocabulary
    assert config.get_text_config() is config
    validate_config(config)


def test_tower_directory_of_the_checkpoint_is_read(config: LladavConfig):
    assert config.vision_config.hidden_size == 64
    assert config.vision_config.num_hidden_layers == 4
    assert (config.tile_size, config.tile_grid, config.max_tiles) == (384, 27, 4)


@pytest.mark.parametrize(
    "load", [AutoConfig.from_pretrained, LladavConfig.from_pretrained]
)
def test_other_ways_to_load(config: LladavConfig, tiny_checkpoint: Path, load):
    assert load(str(tiny_checkpoint)).to_dict() == config.to_dict()


def test_copies_keep_the_tower(config: LladavConfig, tmp_path: Path):
    """Other processes get the config pickled, and may not see the checkpoint."""
    config.save_pretrained(tmp_path)
    for copy in (
        pickle.loads(pickle.dumps(config)),
        LladavConfig.from_dict(config.to_dict()),
        LladavConfig.from_pretrained(tmp_path),
    ):
        assert copy.vision_config.to_dict() == config.vision_config.to_dict()
        validate_config(copy)


@pytest.mark.parametrize(
    "tower",
    [
        "google/siglip2-so400m-patch14-384",
        "model/siglip2-so400m-patch14-384",
        "google/siglip-so400m-patch14-384",
    ],
)
def test_hub_name_of_the_released_tower(tower: str):
    config = LladavConfig(mm_vision_tower=tower)
    assert config.vision_config.hidden_size == 1152
    assert config.vision_config.num_hidden_layers == 27
    validate_config(config)


def test_unknown_hub_name_is_refused():
    with pytest.raises(ValueError, match="mm_vision_tower='openai/clip-vit-large'"):
        LladavConfig(mm_vision_tower="openai/clip-vit-large")


def test_pinpoints():
    assert parse_pinpoints("(1x1),...,(2x2)", 384) == (
        (384, 384),
        (384, 768),
        (768, 384),
        (768, 768),
    )
    assert parse_pinpoints("[(384, 768)]", 384) == ((384, 768),)
    assert parse_pinpoints([[768, 384]], 384) == ((768, 384),)
    with pytest.raises(ValueError, match="not a range"):
        parse_pinpoints("1x1", 384)


def test_projector_depth():
    names = ["linear", "mlp1x_gelu", "mlp2x_gelu", "mlp3x_gelu", "identity"]
    found = [LladavConfig(mm_projector_type=name).projector_depth for name in names]
    assert found == [1, 1, 2, 3, 0]
