# SPDX-License-Identifier: Apache-2.0
"""The dimensions of a checkpoint: what its cost can be computed from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class VisionShape:
    """Dimensions of the vision tower and the projector.

    Attributes:
        hidden_size: of the tower.
        intermediate_size: of its MLPs.
        num_layers: that run; the official features are those of layer -2.
        tile_tokens: patches of a tile.
        patch_values: numbers in a patch: channels times its area.
        projector_depth: linear layers from the tower's to the decoder's size.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    tile_tokens: int
    patch_values: int
    projector_depth: int


@dataclass(frozen=True)
class ModelShape:
    """Dimensions of a checkpoint.

    Attributes:
        hidden_size: of the decoder.
        intermediate_size: of its gated MLPs.
        num_layers: of the decoder.
        num_heads: for queries.
        num_kv_heads: for keys and values.
        head_dim: of a head.
        vocab_rows: of the LM head, padding included.
        vision: None for a decoder alone.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_rows: int
    vision: VisionShape | None = None

    @property
    def layer_weights(self) -> int:
        """Matrix elements of one decoder layer: q, k, v, o, gate, up, down."""
        queries = self.num_heads * self.head_dim
        keys = self.num_kv_heads * self.head_dim
        attention = self.hidden_size * (2 * queries + 2 * keys)
        return attention + 3 * self.hidden_size * self.intermediate_size
