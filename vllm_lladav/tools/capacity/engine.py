# SPDX-License-Identifier: Apache-2.0
"""An engine's options, and the bytes that one of its ranks holds and reads.

A rank is one worker of ``--tensor-parallel-size``. Bytes are floats: shares of ranks
need not be whole.
"""

from dataclasses import dataclass

from vllm_lladav.model.shape import ModelShape
from vllm_lladav.options.kinds import Integer
from vllm_lladav.options.options import ServerOptions
from vllm_lladav.tools.capacity.machine import SHARE

LOGITS_TILE_BYTES = 32 << 20
"""Bytes of float32 logits that exist at once on a CPU: as in ``worker/predictor.py``,
which a test compares (importing it would load torch)."""

GPU_LOGITS_TILE_BYTES = 256 << 20
"""The same on a GPU."""

TILES_PER_FORWARD = 32
"""Most image tiles in one forward pass of the vision tower: as in
``model/lladav/vision.py``, which a test compares."""


@dataclass(frozen=True)
class Engine:
    """A model and the options of the engine that serves it.

    Attributes:
        shape: dimensions of the model.
        max_batched_tokens: most tokens in a step (``--max-num-batched-tokens``).
        max_seqs: most sequences in a step (``--max-num-seqs``).
        dtype_bytes: bytes of one weight, activation, or element of K or V.
        tensor_parallel: number of ranks that share the model.
        block_size: tokens whose K/V a KV block holds.
        full_step_tokens: most tokens of full steps in a step, if there are several; 0
            is no limit (``--full-step-tokens``).
        memory_share: share of a rank's memory that vLLM uses
            (``--gpu-memory-utilization``).
        on_cpu: a rank is a CPU, which has smaller tiles of logits, reads them more
            often, and holds no room for prompt embeddings.

    Raises:
        ValueError: naming the attribute that is out of range.
    """

    shape: ModelShape
    max_batched_tokens: int
    max_seqs: int = 256
    dtype_bytes: int = 2
    tensor_parallel: int = 1
    block_size: int = 16
    full_step_tokens: int = ServerOptions.full_step_tokens
    memory_share: float = 0.92
    on_cpu: bool = False

    def __post_init__(self) -> None:
        for name in (
            *("max_batched_tokens", "max_seqs", "dtype_bytes"),
            *("tensor_parallel", "block_size"),
        ):
            Integer().check(name, getattr(self, name))
        Integer(least=0).check("full_step_tokens", self.full_step_tokens)
        SHARE.check("memory_share", self.memory_share)
        if self.shape.num_heads % self.tensor_parallel:
            raise ValueError(
                f"tensor_parallel must divide the {self.shape.num_heads} heads: "
                f"{self.tensor_parallel}"
            )

    # ------------------------------------------------------------- bytes, one rank
    @property
    def decoder_bytes(self) -> float:
        """Bytes of the decoder layers' matrices on a rank. Every step reads them."""
        elements = self.shape.num_layers * self.shape.layer_weights
        return elements * self.dtype_bytes / self.tensor_parallel

    @property
    def head_bytes(self) -> float:
        """Bytes of the LM head's weights on a rank. The token embedding is as large."""
        elements = self.shape.hidden_size * self.shape.vocab_rows
        return elements * self.dtype_bytes / self.tensor_parallel

    @property
    def tower_bytes(self) -> float:
        """Bytes of vision tower and projector on a rank. The tower (q, k, v, out and
        MLP of every layer, embeddings of patches and positions) is split between the
        ranks, the projector is not."""
        vision = self.shape.vision
        if vision is None:
            return 0
        width, hidden = vision.hidden_size, self.shape.hidden_size
        layer = 4 * width**2 + 2 * width * vision.intermediate_size
        embeddings = (vision.patch_values + vision.tile_tokens) * width
        tower = vision.num_layers * layer + embeddings
        projector = width * hidden + (vision.projector_depth - 1) * hidden**2
        return (tower / self.tensor_parallel + projector) * self.dtype_bytes

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weight matrices on a rank. Norms and biases, less than 0.1%, are
        left out."""
        return self.decoder_bytes + 2 * self.head_bytes + self.tower_bytes

    @property
    def kv_token_bytes(self) -> float:
        """Bytes of one token's K and V in all layers, on a rank."""
        heads = max(self.shape.num_kv_heads / self.tensor_parallel, 1)
        width = heads * self.shape.head_dim
        return 2 * self.shape.num_layers * width * self.dtype_bytes

    @property
    def block_bytes(self) -> float:
        """Bytes of a KV block in all layers, on a rank."""
        return self.block_size * self.kv_token_bytes

    @property
    def embeds_token_bytes(self) -> int:
        """Bytes of one token's embedding. Every rank has all of it."""
        return self.shape.hidden_size * self.dtype_bytes

    @property
    def logits_tile_bytes(self) -> int:
        """Bytes of one tile of logits, in float32."""
        return LOGITS_TILE_BYTES if self.on_cpu else GPU_LOGITS_TILE_BYTES

    @property
    def logits_tile_rows(self) -> int:
        """Rows (positions) of logits in one tile. The LM head's weights are read once
        for each tile."""
        return max(self.logits_tile_bytes // (4 * self.shape.vocab_rows), 1)

    @property
    def logit_bytes(self) -> int:
        """Bytes moved for each logit: on a CPU a float32, written once and read twice;
        on a GPU one of the model's dtype, written once and read once."""
        return 3 * 4 if self.on_cpu else 2 * self.dtype_bytes

    @property
    def activation_bytes(self) -> float:
        """Estimated bytes of activations on a rank, at the peak of the largest step.

        That is a step with all tokens of the budget: input embeddings, residual and
        normed input, and the wider of attention (q, k, v, output) and MLP (gate, up,
        product); or a forward pass of the vision tower over as many tiles as it
        takes, beside the input embeddings, if that is more.
        """
        shape = self.shape
        queries = shape.num_heads * shape.head_dim
        keys = shape.num_kv_heads * shape.head_dim
        inner = max(2 * queries + 2 * keys, 3 * shape.intermediate_size)
        per_token = 3 * shape.hidden_size + inner / self.tensor_parallel
        decoder = self.max_batched_tokens * per_token
        vision = shape.vision
        if vision is None:
            return decoder * self.dtype_bytes
        inner = max(4 * vision.hidden_size, 2 * vision.intermediate_size)
        per_token = 3 * vision.hidden_size + inner / self.tensor_parallel
        tower = TILES_PER_FORWARD * vision.tile_tokens * per_token
        tower += self.max_batched_tokens * shape.hidden_size
        return max(decoder, tower) * self.dtype_bytes
