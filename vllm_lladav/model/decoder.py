# SPDX-License-Identifier: Apache-2.0
"""The decoder: vLLM's Llama layers, attending in both directions.

LLaDA's decoder computes what Llama's does (RMSNorm, rotary embedding, SiLU MLP,
no biases). Whether a token sees only what precedes it is a property of vLLM's
attention metadata, not of the layers; ``DenoisingState.prepare_attn`` builds it
without the causal mask. The layers are therefore vLLM's own.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.llama import LlamaModel

from vllm_lladav.model.lladav.config import LladavConfig

if TYPE_CHECKING:
    from vllm_lladav.worker.contract import LayerPruning

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
LAYERS = "model.layers."
NORM = "model.norm.weight"


def weight_shapes(config: LladavConfig) -> dict[str, tuple[int, ...]]:
    """Official name -> shape of every decoder tensor, head included."""
    hidden = config.hidden_size
    heads = config.num_attention_heads * config.head_dim
    kv_heads = config.num_key_value_heads * config.head_dim
    layer = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "self_attn.q_proj": (heads, hidden),
        "self_attn.k_proj": (kv_heads, hidden),
        "self_attn.v_proj": (kv_heads, hidden),
        "self_attn.o_proj": (hidden, heads),
        "mlp.gate_proj": (config.intermediate_size, hidden),
        "mlp.up_proj": (config.intermediate_size, hidden),
        "mlp.down_proj": (hidden, config.intermediate_size),
    }
    return {
        EMBEDDING: (config.vocab_size, hidden),
        HEAD: (config.vocab_size, hidden),
        NORM: (hidden,),
        **{
            f"{LAYERS}{index}.{name}.weight": shape
            for index in range(config.num_hidden_layers)
            for name, shape in layer.items()
        },
    }


def attentions(decoder: LlamaModel) -> list[Attention]:
    """Attention of every layer, in order."""
    layers: list[Any] = list(decoder.layers)
    return [layer.self_attn.attn for layer in layers]


def forward_pruning(
    decoder: LlamaModel,
    positions: torch.Tensor,
    inputs_embeds: torch.Tensor,
    prune_pass: "LayerPruning",
) -> torch.Tensor:
    """The decoder's forward pass with prune points between its layers.

    Args:
        positions: ``[num_tokens]``, int64, for the rotary embedding.
        inputs_embeds: ``[num_tokens, hidden]``.

    Returns:
        ``[num_tokens left, hidden]``, after the final norm.
    """
    hidden_states, residual = inputs_embeds, None
    with prune_pass.watching():
        for number, layer in enumerate(decoder.layers, start=1):
            hidden_states, residual = layer(positions, hidden_states, residual)
            rows = prune_pass.after_layer(number)
            if rows is not None:
                hidden_states, residual = hidden_states[rows], residual[rows]
                positions = positions[rows]
    hidden_states, _ = decoder.norm(hidden_states, residual)
    return hidden_states


def load_decoder(
    decoder: LlamaModel, weights: Iterable[tuple[str, torch.Tensor]]
) -> None:
    """Load tensors with official names (``model.`` in front) into vLLM's modules."""
    prefix = "model."
    decoder.load_weights((name.removeprefix(prefix), w) for name, w in weights)
