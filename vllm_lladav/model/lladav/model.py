# SPDX-License-Identifier: Apache-2.0
"""LLaDA-V as a vLLM model, read from the official checkpoint."""

from collections.abc import Iterable, Iterator
from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.interfaces import (
    MultiModalEmbeddings,
    SupportsMultiModal,
)
from vllm.model_executor.models.llama import LlamaModel
from vllm.model_executor.models.utils import maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.sequence import IntermediateTensors

from vllm_lladav.model import decoder
from vllm_lladav.model.checkpoint import checked_weights
from vllm_lladav.model.lladav import vision
from vllm_lladav.model.lladav.config import LladavConfig
from vllm_lladav.model.lladav.processing import (
    LladavDummyInputsBuilder,
    LladavMultiModalProcessor,
    LladavProcessingInfo,
)
from vllm_lladav.model.lladav.vision import LladavVision

if TYPE_CHECKING:
    from vllm.model_executor.layers.attention import Attention

    from vllm_lladav.worker.contract import ForwardStep


@MULTIMODAL_REGISTRY.register_processor(
    LladavMultiModalProcessor,
    info=LladavProcessingInfo,
    dummy_inputs=LladavDummyInputsBuilder,
)
class LlavaLLaDAModelLM(nn.Module, SupportsMultiModal):
    """SigLIP tower, projector and bidirectional decoder.

    The vocabulary is cut to the tokenizer's length, as the official loader cuts
    it: ids past it are neither read nor predicted.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        assert isinstance(config, LladavConfig), type(config)
        self.config = config
        self.vocab_size = config.tokenizer_length
        with self._mark_tower_model(vllm_config, "image"):
            self.vision = LladavVision(config, prefix=maybe_prefix(prefix, "vision"))
        cut = copy(config)
        cut.vocab_size = self.vocab_size
        with self._mark_language_model(vllm_config):
            self.model = LlamaModel(
                vllm_config=vllm_config.with_hf_config(cut),
                prefix=maybe_prefix(prefix, "model"),
            )
            self.lm_head = ParallelLMHead(
                self.vocab_size,
                config.hidden_size,
                quant_config=vllm_config.quant_config,
                prefix=maybe_prefix(prefix, "lm_head"),
            )
        # Cutting the padding off would leave logits that are not contiguous.
        self.padded_vocab_size = self.lm_head.num_embeddings_padded
        self.logits_processor = LogitsProcessor(self.vocab_size, self.padded_vocab_size)

    @staticmethod
    def get_model_state_cls() -> type:
        """vLLM's hook for a model's own worker state (Model Runner V2)."""
        from vllm_lladav.worker.state import DenoisingState

        return DenoisingState

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        return "<image>" if modality == "image" else None

    # ------------------------------------------------------------- forward
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
        if step is None or not step.prune_pass.is_needed:
            hidden_states = self.model(
                input_ids, positions, intermediate_tensors, inputs_embeds
            )
            if step is not None:
                step.hidden_states = hidden_states
            return hidden_states
        assert inputs_embeds is not None
        step.hidden_states = decoder.forward_pruning(
            self.model, positions, inputs_embeds, step.prune_pass
        )
        num_dropped = len(inputs_embeds) - len(step.hidden_states)
        return nn.functional.pad(step.hidden_states, (0, 0, 0, num_dropped))

    def attentions(self) -> list["Attention"]:
        """Of every decoder layer, in order."""
        return decoder.attentions(self.model)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Hand the hidden states on: the sampler computes logits where it needs
        them (:meth:`compute_vocab_logits`)."""
        return hidden_states

    def compute_vocab_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """``[n, hidden]`` to ``[n, padded vocabulary]``, float32, contiguous.

        Columns past the tokenizer's length mean nothing.
        """
        logits = self.logits_processor(self.lm_head, hidden_states)
        assert logits is not None, "the platform must gather logits to all ranks"
        return logits.float()

    # ------------------------------------------------------------- weights
    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load the official checkpoint.

        Raises:
            ValueError: naming every missing, unexpected and wrongly shaped tensor.
        """
        expected = {
            **decoder.weight_shapes(self.config),
            **vision.weight_shapes(self.config),
        }
        checked = checked_weights(weights, expected, vision.is_unused_weight)
        decoder.load_decoder(self.model, self._decoder_weights(checked))
        return {name for name, _ in self.named_parameters()}

    def _decoder_weights(
        self, weights: Iterable[tuple[str, torch.Tensor]]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Pass on what the decoder loads; load the rest on the way."""
        for name, weight in weights:
            if name == decoder.HEAD:
                head = self.lm_head.get_parameter("weight")
                self.lm_head.weight_loader(head, weight[: self.vocab_size])
            elif name == decoder.EMBEDDING:
                yield name, weight[: self.vocab_size]
            elif name == decoder.NORM or name.startswith(decoder.LAYERS):
                yield name, weight
            else:
                self.vision.load_weights([(name, weight)])
