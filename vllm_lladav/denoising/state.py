# SPDX-License-Identifier: Apache-2.0
"""What a worker keeps of the running requests, and the inputs of each step."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.gpu.attn_utils import build_attn_metadata
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.mm.encoder_cache import EncoderCache
from vllm.v1.worker.gpu.model_states.interface import ModelState
from vllm.v1.worker.gpu.states import RequestState
from vllm.v1.worker.utils import AttentionGroup

from vllm_lladav.denoising.canvas import Canvas
from vllm_lladav.denoising.sampler import DenoisingSampler
from vllm_lladav.request import denoising_params, is_resolved


@dataclass
class DenoisingRequest:
    """One running request in this worker.

    Attributes:
        canvas: its tokens.
        generator: of its noise; None if nothing is random.
        prompt_embeds: ``[P, hidden]``, visual tokens merged in. Made at the
            first step and kept, because every full step needs it and the
            encoder cache lets go of the images after the first.
    """

    canvas: Canvas
    generator: torch.Generator | None
    prompt_embeds: torch.Tensor | None = None


@dataclass
class DenoisingStep:
    """One forward pass: who is in it and where their rows are.

    Attributes:
        requests: in batch order.
        starts: first row of each in the flattened batch; positions of a canvas
            are counted from there.
        hidden_states: ``[num_tokens, hidden]``, after the final norm; set by
            the model's forward.
    """

    requests: list[DenoisingRequest]
    starts: list[int]
    hidden_states: torch.Tensor | None = field(default=None, repr=False)


class DenoisingState(ModelState):
    """vLLM's per-model worker state (Model Runner V2).

    vLLM's own token buffers hold the prompt and nothing of the canvas: every
    step runs on embeddings that are put together here.
    """

    num_new_sampled_tokens_per_step = 0

    def __init__(
        self,
        vllm_config: VllmConfig,
        model: nn.Module,
        encoder_cache: EncoderCache | None,
        device: torch.device,
    ) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        self._lladav: Any = model
        self._mask_token_id = self.model_config.hf_config.mask_token_id
        self._requests: dict[str, DenoisingRequest] = {}
        self._step: DenoisingStep | None = None

    def custom_sampler(self, sampler: Any) -> tuple[Any, Any]:
        return DenoisingSampler(self), None

    # ------------------------------------------------------------- requests
    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        if not is_resolved(new_req_data.sampling_params):
            return  # vLLM's own warm-up request
        params = denoising_params(new_req_data.sampling_params)
        prompt = new_req_data.prompt_token_ids
        assert prompt is not None and new_req_data.prefill_token_ids is not None
        generator = None
        if params.is_random:
            assert params.seed is not None
            generator = torch.Generator(self.device).manual_seed(params.seed)
        self._requests[new_req_data.req_id] = DenoisingRequest(
            canvas=Canvas(
                params,
                prompt,
                self._mask_token_id,
                # After a preemption vLLM sends the answer so far with the prompt.
                num_emitted=len(new_req_data.prefill_token_ids) - len(prompt),
            ),
            generator=generator,
        )

    def remove_request(self, req_id: str) -> None:
        self._requests.pop(req_id, None)

    # ------------------------------------------------------------- inputs
    def prepare_inputs_embeds(
        self,
        scheduled_encoder_inputs: dict[str, list[int]],
        input_batch: InputBatch,
        req_states: RequestState,
    ) -> torch.Tensor:
        """``[num_tokens_after_padding, hidden]``: prompts, canvases, suffixes."""
        embeds = self.dummy_inputs_embeds(input_batch.num_tokens_after_padding)
        if not all(req_id in self._requests for req_id in input_batch.req_ids):
            return embeds
        self.execute_mm_encoder(scheduled_encoder_inputs)
        requests = [self._requests[req_id] for req_id in input_batch.req_ids]
        starts = input_batch.query_start_loc_np[: len(requests)].tolist()
        self._step = DenoisingStep(requests, starts)
        for req_id, request in zip(input_batch.req_ids, requests, strict=True):
            if request.prompt_embeds is None:
                request.prompt_embeds = self._embed_prompt(req_id, request.canvas)
        tails = [request.canvas.tail for request in requests]
        tail_embeds = self._embed(np.concatenate(tails)).split(list(map(len, tails)))
        parts: list[Any] = []
        for request, tail in zip(requests, tail_embeds, strict=True):
            parts += [request.prompt_embeds, tail]
        torch.cat(parts, out=embeds[: input_batch.num_tokens])
        return embeds

    def dummy_inputs_embeds(self, num_tokens: int) -> torch.Tensor:
        return self.encoder_runner.inputs_embeds[:num_tokens]

    def prepare_inputs(
        self, input_batch: InputBatch, req_states: RequestState
    ) -> dict[str, Any]:
        return {} if self._step is None else {"step": self._step}

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
        return {"inputs_embeds": self.dummy_inputs_embeds(num_tokens)}

    def prepare_attn(
        self,
        input_batch: InputBatch,
        cudagraph_mode: CUDAGraphMode,
        block_tables: tuple[torch.Tensor, ...],
        slot_mappings: torch.Tensor,
        attn_groups: list[list[AttentionGroup]],
        kv_cache_config: KVCacheConfig,
        for_capture: bool = False,
        ubatch_idx: int = 0,
    ) -> dict[str, Any]:
        """Attention metadata per layer: every token attends to all of its request."""
        num_reqs = input_batch.num_reqs
        seq_lens = input_batch.seq_lens_cpu_upper_bound
        return build_attn_metadata(
            attn_groups=attn_groups,
            num_reqs=num_reqs,
            num_tokens=input_batch.num_tokens,
            query_start_loc_gpu=input_batch.query_start_loc[: num_reqs + 1],
            query_start_loc_cpu=torch.from_numpy(
                input_batch.query_start_loc_np[: num_reqs + 1]
            ),
            max_query_len=int(input_batch.num_scheduled_tokens.max()),
            seq_lens=input_batch.seq_lens,
            max_seq_len=int(seq_lens[:num_reqs].max()),
            block_tables=block_tables,
            slot_mappings=slot_mappings,
            kv_cache_config=kv_cache_config,
            seq_lens_cpu_upper_bound=seq_lens,
            positions=input_batch.positions,
            for_cudagraph_capture=for_capture,
            causal=False,
            ubatch_idx=ubatch_idx,
        )

    # ------------------------------------------------------------- for the sampler
    def take_step(self) -> DenoisingStep | None:
        """The step whose forward pass just ran; None in warm-up runs."""
        step, self._step = self._step, None
        return step

    def overwrite_prompt(
        self, request: DenoisingRequest, positions: np.ndarray
    ) -> None:
        """Masks in the prompt at ``positions`` (``[n]``) became tokens."""
        assert request.prompt_embeds is not None
        rows = torch.from_numpy(positions).to(self.device)
        request.prompt_embeds[rows] = self._embed(request.canvas.token_ids[positions])

    def _embed(self, token_ids: np.ndarray) -> torch.Tensor:
        ids = async_tensor_h2d(token_ids, device=self.device, dtype=torch.int64)
        return self._lladav.embed_input_ids(ids)

    def _embed_prompt(self, req_id: str, canvas: Canvas) -> torch.Tensor:
        prompt_len = canvas.prompt_len
        visual, is_visual = self.encoder_runner.gather_mm_embeddings(
            [req_id],
            prompt_len,
            np.array([prompt_len]),
            np.array([0, prompt_len]),
            prefill_lens=np.array([prompt_len]),
            num_computed_tokens=np.array([0]),
        )
        ids = async_tensor_h2d(
            canvas.token_ids[:prompt_len], device=self.device, dtype=torch.int64
        )
        return self._lladav.embed_input_ids(
            ids, multimodal_embeddings=visual, is_multimodal=is_visual
        )
