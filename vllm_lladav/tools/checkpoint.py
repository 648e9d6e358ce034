# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint's files say without its weights: shapes, lengths, image tiling."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_lladav.model.families import resolve_alias
from vllm_lladav.model.lladav.family import LLADAV
from vllm_lladav.model.lladav.image_modes import resolve_image_mode
from vllm_lladav.model.shape import ModelShape, VisionShape

VOCAB_PADDING = 64
"""vLLM rounds the rows of the token embedding and of the LM head up to a multiple."""


@dataclass(frozen=True)
class Checkpoint:
    """What the tools compute with; no weights, and no torch until images are tiled.

    Attributes:
        name: as the user gave it.
        shape: dimensions of decoder and vision tower.
        max_model_len: ``max_position_embeddings``, vLLM's default for the flag.
        pinpoints: sizes of the canvases that images are tiled on, (width, height) in
            pixels.
        tile_size: side of a square tile, in pixels.
        tile_grid: visual tokens along a side of a tile.
        max_tiles: N of ``anyres_max_N``; None for no limit.
        uses_anyres: whether a single image is tiled by default.
    """

    name: str
    shape: ModelShape
    max_model_len: int
    pinpoints: tuple[tuple[int, int], ...]
    tile_size: int = 384
    tile_grid: int = 27
    max_tiles: int | None = 4
    uses_anyres: bool = True

    def visual(
        self, sizes: Sequence[tuple[int, int]], mode: str = "auto"
    ) -> tuple[tuple[int, ...], int]:
        """Visual tokens of each image of a request, and the number of tiles of all
        images together (the overview of a tiled image is one).

        Args:
            sizes: (width, height) of each image, in pixels.
            mode: as in ``mm_processor_kwargs``.

        Raises:
            ValueError: for ``anyres`` with a checkpoint that does not tile images.
        """
        from vllm_lladav.model.lladav.anyres import (
            AnyresGeometry,
            num_visual_tokens,
            tile_layout,
        )

        geometry = AnyresGeometry(
            self.pinpoints, self.tile_size, self.tile_grid, self.max_tiles
        )
        resolved = resolve_image_mode(mode, self.uses_anyres, len(sizes))
        tokens = tuple(num_visual_tokens(*size, geometry, resolved) for size in sizes)
        num_tiles = len(sizes)
        if resolved == "anyres":
            num_tiles += sum(math.prod(tile_layout(size, geometry)) for size in sizes)
        return tokens, num_tiles


PRESETS: dict[str, Checkpoint] = {
    "8b": Checkpoint(
        name="LLaDA-V 8B",
        shape=ModelShape(
            hidden_size=4096,
            intermediate_size=12288,
            num_layers=32,
            num_heads=32,
            num_kv_heads=32,
            head_dim=128,
            vocab_rows=126400,  # 126349 in the tokenizer, padded.
            vision=VisionShape(
                hidden_size=1152,
                intermediate_size=4304,
                num_layers=26,  # 27; the features are those before the last one.
                tile_tokens=729,
                patch_values=3 * 14**2,
                projector_depth=2,
            ),
        ),
        max_model_len=16384,
        pinpoints=tuple((384 * w, 384 * h) for w in range(1, 7) for h in range(1, 7)),
    )
}
"""Built-in shapes by name: nothing is read or downloaded."""


def read_checkpoint(model: str) -> Checkpoint:
    """Read the config and the tokenizer's length of a checkpoint, no weights.

    Args:
        model: alias, hub name, or directory with a ``config.json``. In a directory
            without a tokenizer the vocabulary's size is the config's.

    Raises:
        OSError: if it is not there.
        ValueError: if it is no LLaDA-V.
    """
    from transformers import AutoConfig, AutoTokenizer

    from vllm_lladav.model.lladav.config import LladavConfig

    name = resolve_alias(model)
    LLADAV.register()
    config = AutoConfig.from_pretrained(name)
    if not isinstance(config, LladavConfig):
        raise ValueError(f"{model} is no LLaDA-V checkpoint")
    LLADAV.validate(config)
    num_tokens = config.vocab_size
    if not Path(name).is_dir() or Path(name, "tokenizer.json").is_file():
        num_tokens = len(AutoTokenizer.from_pretrained(name))
    vocab_rows = -(-num_tokens // VOCAB_PADDING) * VOCAB_PADDING
    return Checkpoint(
        name=model,
        shape=LLADAV.shape(config, vocab_rows),
        max_model_len=config.max_position_embeddings,
        pinpoints=config.pinpoints,
        tile_size=config.tile_size,
        tile_grid=config.tile_grid,
        max_tiles=config.max_tiles,
        uses_anyres=config.uses_anyres,
    )
