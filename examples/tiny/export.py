# SPDX-License-Identifier: Apache-2.0
"""Write a trained model as a checkpoint in the official format, in bfloat16.

::

    python -m examples.tiny.export RUN/state.pt vllm_lladav/tiny/trained
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from examples.tiny import tokenizer
from examples.tiny.batches import BANNED_IDS, EOT_ID, MASK_ID
from examples.tiny.model import (
    LAYER_NORM_EPS,
    PATCH_SIZE,
    PINPOINTS,
    RMS_NORM_EPS,
    ROPE_THETA,
    SIZE,
    TILE_SIZE,
)
from vllm_lladav.tiny import configs

VISION_TOWER_DIRECTORY = f"siglip-tiny-patch{PATCH_SIZE}-{TILE_SIZE}"
MAX_LENGTH = 2048


def vocab_rows() -> int:
    """A multiple of 64 that leaves at least one row past the tokenizer."""
    return (len(tokenizer.load().get_vocab()) // 64 + 1) * 64


def model_config() -> dict[str, Any]:
    """``config.json``: the official keys, and the ids of this vocabulary."""
    ids = tokenizer.special_ids()
    changed = {
        "vocab_size": vocab_rows(),
        "bos_token_id": ids[tokenizer.STARTOFTEXT],
        "eos_token_id": ids[tokenizer.ENDOFTEXT],
        "mask_token_id": MASK_ID,
        "eot_token_id": EOT_ID,
        "banned_token_ids": BANNED_IDS,
        "rms_norm_eps": RMS_NORM_EPS,
        "rope_theta": ROPE_THETA,
        "max_position_embeddings": MAX_LENGTH,
        "tokenizer_model_max_length": MAX_LENGTH,
        "image_grid_pinpoints": [list(pinpoint) for pinpoint in PINPOINTS],
        "mm_vision_tower": VISION_TOWER_DIRECTORY,
    }
    return {**configs.model_config(SIZE, "bfloat16"), **changed}


def vision_config() -> dict[str, Any]:
    content = configs.vision_config(SIZE)
    content["vision_config"] |= {
        "image_size": TILE_SIZE,
        "patch_size": PATCH_SIZE,
        "layer_norm_eps": LAYER_NORM_EPS,
    }
    return content


def write_checkpoint(weights: dict[str, torch.Tensor], directory: Path) -> None:
    tower = directory / VISION_TOWER_DIRECTORY
    tower.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: weight.to(torch.bfloat16).contiguous() for name, weight in weights.items()
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    tokenizer.write(directory)
    ids = tokenizer.special_ids()
    generation = {
        **configs.generation_config(),
        "bos_token_id": ids[tokenizer.STARTOFTEXT],
        "eos_token_id": ids[tokenizer.ENDOFTEXT],
    }
    for path, content in (
        (directory / "config.json", model_config()),
        (directory / "generation_config.json", generation),
        (tower / "config.json", vision_config()),
    ):
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("state", type=Path, help="state.pt of a training run")
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    state = torch.load(arguments.state, map_location="cpu", weights_only=True)
    write_checkpoint(state["model"], arguments.directory)


if __name__ == "__main__":
    main()
