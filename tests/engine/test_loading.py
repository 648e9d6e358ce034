# SPDX-License-Identifier: Apache-2.0
"""What does not fit is refused at start, with everything that is wrong."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

DAMAGED_SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def test_damaged_checkpoint(start_engine, copy: Path):
    """Missing, unexpected and misshaped tensors of the decoder, the projector and
    the tower, in one error."""
    tensors = load_file(copy / DAMAGED_SHARD)
    query = tensors.pop("model.layers.2.self_attn.q_proj.weight")
    bias = tensors.pop("model.mm_projector.2.bias")
    norm = "model.layers.1.input_layernorm.weight"
    tensors[norm] = tensors[norm][:-1].clone()
    position = next(name for name in tensors if "position_embedding" in name)
    tensors[position] = tensors[position].T.contiguous()
    tensors["model.layers.9.self_attn.q_proj.weight"] = query
    tensors["model.layers.0.self_attn.q_proj.bias"] = bias
    save_file(tensors, copy / DAMAGED_SHARD, metadata={"format": "pt"})
    index_file = copy / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    index["weight_map"] = dict.fromkeys(tensors, DAMAGED_SHARD) | {
        name: shard
        for name, shard in index["weight_map"].items()
        if shard != DAMAGED_SHARD
    }
    index_file.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"does not fit its config") as error:
        start_engine(copy)
    message = str(error.value)
    assert "(6 problems)" in message
    for problem in (
        "missing tensor model.layers.2.self_attn.q_proj.weight (128, 128)",
        "missing tensor model.mm_projector.2.bias (128,)",
        f"tensor {norm} has shape (127,), the config says (128,)",
        f"tensor {position} has shape (64, 729), the config says (729, 64)",
        "unexpected tensor model.layers.9.self_attn.q_proj.weight (128, 128)",
        "unexpected tensor model.layers.0.self_attn.q_proj.bias (128,)",
    ):
        assert problem in message


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("mm_projector_type", "resampler", "mlpNx_gelu"),
        ("mm_patch_merge_type", "flat", "spatial_unpad"),
        ("hidden_act", "gelu", "silu"),
        ("rope_scaling", {"rope_type": "linear", "factor": 2.0}, "null"),
    ],
)
def test_unsupported_config_value(start_engine, copy: Path, name, value, allowed):
    """Refused before any weight is read, naming key, value and what is allowed."""
    config_file = copy / "config.json"
    config = json.loads(config_file.read_text())
    config_file.write_text(json.dumps({**config, name: value}))
    (copy / DAMAGED_SHARD).unlink()
    with pytest.raises(ValueError, match=name) as error:
        start_engine(copy)
    assert allowed in str(error.value)
    assert str(value) in str(error.value) or name == "rope_scaling"
