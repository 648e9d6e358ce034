# SPDX-License-Identifier: Apache-2.0
"""What worker and model know of each other. Nothing is imported between them but this.

The worker takes any model that is a :class:`DenoisingModel`. The model's forward gets
a :class:`ForwardStep`, which takes the hidden states and prunes on the way.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.interfaces import MultiModalEmbeddings


class DenoisingModel(Protocol):
    """A decoder that attends in both directions, its embedding and its head."""

    padded_vocab_size: int  # Columns of the logits.

    def attentions(self) -> list[Attention]:
        """vLLM's attention of every decoder layer, in order."""

    def embed_input_ids(
        self,
        input_ids: torch.Tensor,
        multimodal_embeddings: MultiModalEmbeddings | None = None,
        *,
        is_multimodal: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``[n]`` token ids to ``[n, hidden]``; images where ``is_multimodal``
        (``[n]``, bool, on the CPU) says so."""

    def compute_vocab_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """``[n, hidden]`` to ``[n, padded_vocab_size]``, contiguous; the caller's."""


class LayerPruning(Protocol):
    """The prune points of a forward pass."""

    @property
    def is_needed(self) -> bool:
        """Whether anything is pruned. If not, the rest need not be called."""

    def watching(self) -> AbstractContextManager[None]:
        """Entered around the decoder layers; keeps what they attend with."""

    def after_layer(self, layer: int) -> torch.Tensor | None:
        """Called behind every layer, from 1. The rows of the batch that stay, int64,
        ascending; None for all."""


class ForwardStep(Protocol):
    """The argument ``step`` of the model's forward."""

    @property
    def prune_pass(self) -> LayerPruning: ...

    @property
    def replay(self) -> Callable[[], torch.Tensor] | None:
        """The whole step as a CUDA graph, which has its inputs: ``[num_tokens or more,
        hidden]``, after the final norm."""

    hidden_states: torch.Tensor | None
    """Set by the forward pass: ``[num_tokens left, hidden]``, after the final norm."""
