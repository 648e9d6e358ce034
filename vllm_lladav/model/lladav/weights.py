# SPDX-License-Identifier: Apache-2.0
"""The decoder's tensors in the official checkpoint. Vision's are in ``vision.py``."""

from vllm_lladav.model.lladav.config import LladavConfig

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
