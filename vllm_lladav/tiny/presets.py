# SPDX-License-Identifier: Apache-2.0
"""Sizes of the random checkpoints, and the token ids they share with LLaDA-V."""

from dataclasses import dataclass

VOCAB_ROWS = 126464
"""Rows of the embedding and of ``lm_head``; the last ones belong to no token."""

NUM_TOKENS = 126349
"""Entries of the tokenizer, special tokens included."""

NUM_ORDINARY_TOKENS = 126080
"""Entries of the byte-pair vocabulary; special tokens have the ids behind it."""

STARTOFTEXT_ID = 126080
ENDOFTEXT_ID = 126081
MASK_ID = 126336
START_HEADER_ID = 126346
END_HEADER_ID = 126347
EOT_ID = 126348

TILE_SIZE = 384
PATCH_SIZE = 14
PATCHES_PER_TILE = (TILE_SIZE // PATCH_SIZE) ** 2


@dataclass(frozen=True)
class ModelSize:
    """Dimensions of one checkpoint: the decoder, and the vision tower before it."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    vision_hidden_size: int = 64
    vision_intermediate_size: int = 128
    vision_num_layers: int = 4
    vision_num_heads: int = 4

    @property
    def head_dim(self) -> int:
        """Width of a decoder's attention head."""
        return self.hidden_size // self.num_heads


PRESETS = {
    "tiny": ModelSize(
        hidden_size=128, intermediate_size=256, num_layers=4, num_heads=4
    ),
    # Wide and deep enough to time.
    "mid": ModelSize(
        hidden_size=512, intermediate_size=1536, num_layers=8, num_heads=8
    ),
}
