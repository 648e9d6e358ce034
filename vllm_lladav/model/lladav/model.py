# SPDX-License-Identifier: Apache-2.0
"""LLaDA-V as a vLLM model, read from the official checkpoint."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import (
    MultiModalEmbeddings,
    SupportsMultiModal,
)
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    WeightsMapper,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_lladav.denoising.traits import traits_of
from vllm_lladav.model.checkpoint import Weight, checked_weights
from vllm_lladav.model.decoder import MaskedDiffusionLM
from vllm_lladav.model.lladav import vision
from vllm_lladav.model.lladav.config import LladavConfig
from vllm_lladav.model.lladav.processing import (
    LladavDummyInputsBuilder,
    LladavMultiModalProcessor,
    LladavProcessingInfo,
)
from vllm_lladav.model.lladav.prompt import IMAGE_MARK

_EMBEDDING = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"


@MULTIMODAL_REGISTRY.register_processor(
    LladavMultiModalProcessor,
    info=LladavProcessingInfo,
    dummy_inputs=LladavDummyInputsBuilder,
)
class LlavaLLaDAModelLM(MaskedDiffusionLM, SupportsMultiModal):
    """SigLIP tower, projector and bidirectional decoder.

    The vocabulary is cut to the tokenizer's length, as the official loader cuts
    it: ids past it are neither read nor predicted.
    """

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            vision.TOWER_PREFIX: "vision.tower.",
            vision.PROJECTOR_PREFIX: "vision.projector.",
            vision.NEWLINE_NAME: "vision.image_newline",
        }
    )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        assert isinstance(config, LladavConfig), type(config)
        self.config = config
        self._num_tokens = traits_of(vllm_config.model_config).num_tokens
        with self._mark_tower_model(vllm_config, "image"):
            self.vision = vision.LladavVision(
                config, prefix=maybe_prefix(prefix, "vision")
            )
        with self._mark_language_model(vllm_config):
            self.build_decoder(vllm_config, prefix)

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        return IMAGE_MARK if modality == "image" else None

    # ------------------------------------------------------------- embeddings
    def embed_multimodal(self, **kwargs: Any) -> MultiModalEmbeddings:
        """One ``[num_visual_tokens, hidden]`` tensor per image."""
        return self.vision(**kwargs)

    def embed_input_ids(
        self,
        input_ids: torch.Tensor,
        multimodal_embeddings: MultiModalEmbeddings | None = None,
        *,
        is_multimodal: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``[n]`` token ids to ``[n, hidden]``, visual embeddings where images stand.

        Args:
            multimodal_embeddings: of the images, in order, or none.
            is_multimodal: ``[n]``, bool, on the CPU: positions of the images.
        """
        if not multimodal_embeddings:
            return self.model.embed_input_ids(input_ids)
        assert is_multimodal is not None
        where = is_multimodal.to(input_ids.device)
        # The placeholder id has no row in the embedding.
        embeds = self.model.embed_input_ids(input_ids.masked_fill(where, 0))
        embeds[where] = torch.cat(list(multimodal_embeddings)).to(embeds.dtype)
        return embeds

    # ------------------------------------------------------------- weights
    def load_weights(self, weights: Iterable[Weight]) -> set[str]:
        """Load the official checkpoint.

        Raises:
            ValueError: naming every missing, unexpected and wrongly shaped tensor.
        """
        expected = {
            **_decoder_weight_shapes(self.config),
            **vision.weight_shapes(self.config),
        }
        checked = checked_weights(weights, expected, vision.is_unused_weight)
        return AutoWeightsLoader(self).load_weights(
            self._without_spare_rows(checked), mapper=self.hf_to_vllm_mapper
        )

    def _without_spare_rows(self, weights: Iterable[Weight]) -> Iterator[Weight]:
        """Of embedding and head, the rows of the vocabulary only."""
        for name, weight in weights:
            is_cut = name in (_EMBEDDING, _HEAD)
            yield name, weight[: self._num_tokens] if is_cut else weight


def _decoder_weight_shapes(config: LladavConfig) -> dict[str, tuple[int, ...]]:
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
        _EMBEDDING: (config.vocab_size, hidden),
        _HEAD: (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
        **{
            f"model.layers.{index}.{name}.weight": shape
            for index in range(config.num_hidden_layers)
            for name, shape in layer.items()
        },
    }
