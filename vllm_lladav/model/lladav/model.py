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
from vllm.model_executor.models.utils import maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_lladav.denoising.traits import traits_of
from vllm_lladav.model.checkpoint import Weight, checked_weights
from vllm_lladav.model.decoder import MaskedDiffusionLM
from vllm_lladav.model.lladav import vision
from vllm_lladav.model.lladav import weights as official
from vllm_lladav.model.lladav.config import LladavConfig
from vllm_lladav.model.lladav.processing import (
    LladavDummyInputsBuilder,
    LladavMultiModalProcessor,
    LladavProcessingInfo,
)
from vllm_lladav.model.lladav.prompt import IMAGE_MARK


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
            **official.weight_shapes(self.config),
            **vision.weight_shapes(self.config),
        }
        checked = checked_weights(weights, expected, vision.is_unused_weight)
        self.model.load_weights(self._decoder_weights(checked))
        return {name for name, _ in self.named_parameters()}

    def _decoder_weights(self, checked: Iterable[Weight]) -> Iterator[Weight]:
        """Pass on what the decoder loads, in its names; load the rest on the way."""
        for name, weight in checked:
            inner = name.removeprefix("model.")
            if name == official.HEAD:
                head = self.lm_head.get_parameter("weight")
                self.lm_head.weight_loader(head, weight[: self._num_tokens])
            elif name == official.EMBEDDING:
                yield inner, weight[: self._num_tokens]
            elif name == official.NORM or name.startswith(official.LAYERS):
                yield inner, weight
            else:
                self.vision.load_weights([(name, weight)])
