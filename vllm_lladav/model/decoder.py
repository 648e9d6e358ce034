# SPDX-License-Identifier: Apache-2.0
"""The decoder and its head, which all families share: vLLM's Llama layers, attending
in both directions.

LLaDA's decoder computes what Llama's does (RMSNorm, rotary embedding, SiLU MLP,
no biases). Whether a token sees only what precedes it is a property of vLLM's
attention metadata, not of the layers; ``DenoisingState.prepare_attn`` builds it
without the causal mask. The layers are therefore vLLM's own.
"""

from contextlib import nullcontext
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.llama import LlamaModel
from vllm.model_executor.models.utils import maybe_prefix
from vllm.sequence import IntermediateTensors

from vllm_lladav.denoising.traits import traits_of
from vllm_lladav.model.cpu_layer import add_and_norm, forward_on_cpu
from vllm_lladav.model.fused_norms import fused_norms

if TYPE_CHECKING:
    from vllm_lladav.worker.contract import ForwardStep, LayerPruning


class MaskedDiffusionLM(nn.Module):
    """Base of a family's vLLM model, which adds embeddings and weights to it.

    Attributes:
        model: the decoder with its token embedding.
        lm_head: one row per token that can be predicted, and padding.
        padded_vocab_size: rows of the head.
    """

    def build_decoder(self, vllm_config: VllmConfig, prefix: str) -> None:
        """For the ids that can be read and predicted (``Traits.num_tokens``), which
        may be fewer than the checkpoint has rows for."""
        num_tokens = traits_of(vllm_config.model_config).num_tokens
        config = copy(vllm_config.model_config.hf_config)
        config.vocab_size = num_tokens
        self.model = LlamaModel(
            vllm_config=vllm_config.with_hf_config(config),
            prefix=maybe_prefix(prefix, "model"),
        )
        self.lm_head = ParallelLMHead(
            num_tokens,
            config.hidden_size,
            quant_config=vllm_config.quant_config,
            prefix=maybe_prefix(prefix, "lm_head"),
        )
        # Cutting the padding off would leave logits that are not contiguous.
        self.padded_vocab_size = self.lm_head.num_embeddings_padded
        self.logits_processor = LogitsProcessor(num_tokens, self.padded_vocab_size)

    @staticmethod
    def get_model_state_cls() -> type:
        """vLLM's hook for a model's own worker state (Model Runner V2)."""
        from vllm_lladav.worker.state import DenoisingState

        return DenoisingState

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        step: "ForwardStep | None" = None,
    ) -> torch.Tensor:
        """``[num_tokens, hidden]`` after the final norm, also left in ``step``.

        Where the step prunes, ``step`` has the rows that stay only; those that are
        returned, for vLLM's own bookkeeping, are then followed by zeros.
        """
        if step is not None and step.replay is not None:
            step.hidden_states = step.replay()
            return step.hidden_states
        is_pruned = step is not None and step.prune_pass.is_needed
        if step is None or not (is_pruned or positions.is_cpu):
            hidden_states = self.model(
                input_ids, positions, intermediate_tensors, inputs_embeds
            )
            if step is not None:
                step.hidden_states = hidden_states
            return hidden_states
        assert inputs_embeds is not None
        step.hidden_states = forward_by_layers(
            self.model, positions, inputs_embeds, step.prune_pass if is_pruned else None
        )
        num_dropped = len(inputs_embeds) - len(step.hidden_states)
        return nn.functional.pad(step.hidden_states, (0, 0, 0, num_dropped))

    def attentions(self) -> list[Attention]:
        """vLLM's attention of every decoder layer, in order."""
        layers: list[Any] = list(self.model.layers)
        return [layer.self_attn.attn for layer in layers]

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Hand the hidden states on: the sampler computes logits where it needs
        them (:meth:`compute_vocab_logits`)."""
        return hidden_states

    def compute_vocab_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """``[n, hidden]`` to ``[n, padded vocabulary]``, contiguous, new memory.

        Columns past the tokens that can be predicted mean nothing.
        """
        logits = self.logits_processor(self.lm_head, hidden_states)
        assert logits is not None, "the platform must gather logits to all ranks"
        return logits


def forward_by_layers(
    decoder: LlamaModel,
    positions: torch.Tensor,
    inputs_embeds: torch.Tensor,
    prune_pass: "LayerPruning | None",
) -> torch.Tensor:
    """The decoder's forward pass in Python, with prune points between its layers.

    Args:
        positions: ``[num_tokens]``, int64, for the rotary embedding.
        inputs_embeds: ``[num_tokens, hidden]``; overwritten.

    Returns:
        ``[num_tokens left, hidden]``, after the final norm.
    """
    is_cpu = positions.is_cpu
    hidden_states, residual = inputs_embeds, None
    with fused_norms(), nullcontext() if prune_pass is None else prune_pass.watching():
        for number, layer in enumerate(decoder.layers, start=1):
            run = partial(forward_on_cpu, layer) if is_cpu else layer
            hidden_states, residual = run(positions, hidden_states, residual)
            rows = None if prune_pass is None else prune_pass.after_layer(number)
            if rows is not None:
                hidden_states, residual = hidden_states[rows], residual[rows]
                positions = positions[rows]
        if is_cpu:
            return add_and_norm(decoder.norm, hidden_states, residual)
        hidden_states, _ = decoder.norm(hidden_states, residual)
    return hidden_states
