# SPDX-License-Identifier: Apache-2.0
"""Write a checkpoint directory.

Layout::

    config.json  generation_config.json
    model-00001-of-0000n.safetensors ...  model.safetensors.index.json
    tokenizer.json  tokenizer_config.json  special_tokens_map.json
    siglip-tiny-patch14-384/config.json, model.safetensors   (a decoy, see weights.py)
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from vllm_lladav.tiny import configs, tokenizer
from vllm_lladav.tiny.presets import PRESETS, VOCAB_ROWS
from vllm_lladav.tiny.weights import Float32Array, decoy_vision_tensors, model_tensors

DEFAULT_SEED = "lladav-golden-1"

DType = Literal["bf16", "f32"]
_TORCH_DTYPE: Mapping[DType, str] = {"bf16": "bfloat16", "f32": "float32"}


def write_checkpoint(
    directory: str | Path,
    preset: str = "tiny",
    *,
    seed: str = DEFAULT_SEED,
    dtype: DType = "bf16",
    shards: int = 2,
    head_gains: Mapping[int, float] | None = None,
) -> None:
    """Write a random-weight checkpoint to ``directory``, which is created.

    Args:
        directory: where the files go; files of the same names are overwritten.
        preset: "tiny" (67 MB) or "mid" (0.3 GB).
        seed: what the weights are drawn from.
        dtype: storage type; the numbers are the same in both.
        shards: number of safetensors files of the model.
        head_gains: factors for rows of ``lm_head``, by token id, in addition to or
            instead of the default ones.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset={preset!r}, expected one of {sorted(PRESETS)}")
    if dtype not in _TORCH_DTYPE:
        raise ValueError(f"dtype={dtype!r}, expected one of {sorted(_TORCH_DTYPE)}")
    if shards < 1:
        raise ValueError(f"shards={shards}, expected at least 1")
    head_gains = head_gains or {}
    for token_id in head_gains:
        if not 0 <= token_id < VOCAB_ROWS:
            raise ValueError(
                f"head_gains has id {token_id}, expected 0 to {VOCAB_ROWS - 1}"
            )

    size, directory = PRESETS[preset], Path(directory)
    vision_directory = directory / configs.VISION_TOWER_DIRECTORY
    vision_directory.mkdir(parents=True, exist_ok=True)
    torch_dtype = _TORCH_DTYPE[dtype]
    tensors = model_tensors(size, seed, head_gains)
    _write_shards(directory, tensors, torch_dtype, shards, size.num_layers)
    decoy = decoy_vision_tensors(size, seed)
    _write_tensors(vision_directory / "model.safetensors", decoy, torch_dtype)
    _write_json(vision_directory / "config.json", configs.vision_config(size))
    write_configuration(directory, configs.model_config(size, torch_dtype))


def write_configuration(directory: Path, config: Mapping[str, Any]) -> None:
    """Write what a checkpoint has beside weights and tower: ``config.json`` as given,
    the official vocabulary's tokenizer."""
    for name, content in (
        ("config.json", config),
        ("generation_config.json", configs.generation_config()),
        ("tokenizer_config.json", tokenizer.tokenizer_config()),
        ("special_tokens_map.json", tokenizer.special_tokens_map()),
    ):
        _write_json(directory / name, content)
    _write_json(directory / "tokenizer.json", tokenizer.tokenizer_json(), indent=None)


def shard_of(name: str, shards: int, num_layers: int) -> int:
    """Return the index of the shard that holds the tensor ``name``.

    The embedding and the head, by far the largest, have the last shard to themselves;
    the layers are spread over the others, and everything else is in the first.
    """
    if shards == 1:
        return 0
    if name in ("model.embed_tokens.weight", "lm_head.weight"):
        return shards - 1
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    return int(layer[1]) * (shards - 1) // num_layers if layer else 0


def file_digests(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below ``directory``, by relative path."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def content_digest(digests: Mapping[str, str]) -> str:
    """Return one SHA-256 for a whole checkpoint, from its :func:`file_digests`."""
    lines = (f"{digests[name]} {name}\n" for name in sorted(digests))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _write_shards(
    directory: Path,
    tensors: Mapping[str, Float32Array],
    torch_dtype: str,
    shards: int,
    num_layers: int,
) -> None:
    """Write the model's safetensors files and their index."""
    files = [f"model-{n:05d}-of-{shards:05d}.safetensors" for n in range(1, shards + 1)]
    weight_map = {
        name: files[shard_of(name, shards, num_layers)] for name in sorted(tensors)
    }
    total_size = 0
    for file in files:
        part = {name: tensors[name] for name in tensors if weight_map[name] == file}
        total_size += _write_tensors(directory / file, part, torch_dtype)
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    _write_json(directory / "model.safetensors.index.json", index)


def _write_tensors(
    path: Path, tensors: Mapping[str, Float32Array], torch_dtype: str
) -> int:
    """Write a safetensors file; returns the bytes of its tensors."""
    # Imported late: torch takes long to load, and ``--help`` does without.
    import torch
    from safetensors.torch import save

    dtype = getattr(torch, torch_dtype)
    stored = {
        name: torch.from_numpy(values).to(dtype) for name, values in tensors.items()
    }
    # Not save_file, whose files nobody else may read.
    path.write_bytes(save(stored, metadata={"format": "pt"}))
    return sum(tensor.nbytes for tensor in stored.values())


def _write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    text = json.dumps(content, ensure_ascii=False, indent=indent)
    path.write_text(text, encoding="utf-8", newline="\n")
