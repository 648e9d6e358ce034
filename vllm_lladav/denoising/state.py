# SPDX-License-Identifier: Apache-2.0
"""What a worker keeps of the running requests, and the inputs of each step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

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
from vllm_lladav.denoising.marks import PruneReport
from vllm_lladav.denoising.plan import Span, StepPlan
from vllm_lladav.denoising.sampler import DenoisingSampler
from vllm_lladav.model import decoder
from vllm_lladav.pruning.params import PruneStage, PruningParams
from vllm_lladav.pruning.prune_pass import AttentionInputs, Pruned, PrunePass
from vllm_lladav.request import denoising_params, is_resolved

if TYPE_CHECKING:
    from vllm_lladav.model.lladav import LlavaLLaDAModelLM

OnPruned = Callable[[str, Pruned], None]
"""Called with a request's id and what a stage did to it."""


@dataclass
class DenoisingRequest:
    """One running request in this worker.

    Attributes:
        req_id: vLLM's.
        canvas: its tokens.
        plan: what its steps compute.
        generator: of its noise; None if nothing is random.
        visual: ``[m]``, int64: positions of the visual tokens that are left.
        image_ids: ``[m]``, int64: the image of each.
        positions: ``[n]``, int64: of all its tokens, for the rotary embedding; None
            while they are 0 to n - 1.
        prompt_embeds: ``[P, hidden]``, visual tokens merged in. Made at the
            first step and kept, because every full step needs it and the
            encoder cache lets go of the images after the first.
        prune_report: of the step that runs.
        on_pruned: tells an observer.
    """

    req_id: str
    canvas: Canvas
    plan: StepPlan
    generator: torch.Generator | None
    visual: torch.Tensor
    image_ids: torch.Tensor
    positions: torch.Tensor | None = None
    prompt_embeds: torch.Tensor | None = None
    prune_report: PruneReport | None = None
    on_pruned: OnPruned | None = None

    def __len__(self) -> int:
        """Tokens that the step computes."""
        return self.computed.length

    @property
    def computed(self) -> Span:
        """Positions that the step computes."""
        return self.plan.computed(self.canvas.index, len(self.visual))

    @property
    def layout(self) -> Span:
        """Positions from which the step's transfers are chosen: all of the sequence,
        as in the official code, or what the step computes, as in Fast-dLLM."""
        return self.computed if self.plan.follows_blocks else Span(0, len(self.canvas))

    @property
    def pruning(self) -> PruningParams | None:
        return self.plan.params.pruning

    @property
    def seed(self) -> int | None:
        return self.plan.params.seed

    def stages(self) -> tuple[PruneStage, ...]:
        """What is pruned in the step that runs."""
        return self.plan.stages(self.canvas.step)

    def attention_rows(self, queries: str) -> torch.Tensor:
        """Positions whose attention counts for ``queries``: ``[r]``, int64."""
        if queries == "answer":
            rows = torch.from_numpy(self.canvas.masks())
        elif queries == "last":
            rows = torch.tensor([len(self.canvas) - 1])
        else:
            rows = torch.arange(len(self.canvas))
        return rows.to(self.visual.device)

    def keep_visual(self, pruned: Pruned) -> None:
        """Forget the visual tokens that are not kept; all positions move up."""
        prompt = pruned.positions[: -self.plan.params.num_tail_tokens]
        assert self.pruning is not None and self.prompt_embeds is not None
        if self.pruning.positions == "original":
            old = self.positions
            self.positions = pruned.positions if old is None else old[pruned.positions]
        self.prompt_embeds = self.prompt_embeds[prompt]
        self.canvas.keep_prompt(prompt.cpu().numpy())
        self.visual = torch.searchsorted(prompt, self.visual[pruned.kept])
        self.image_ids = self.image_ids[pruned.kept]
        spent = 0 if self.prune_report is None else self.prune_report.microseconds
        spent += round(pruned.seconds * 1e6)
        self.prune_report = PruneReport(len(self.visual), spent)
        if self.on_pruned is not None:
            self.on_pruned(self.req_id, pruned)

    def take_prune_report(self) -> PruneReport | None:
        report, self.prune_report = self.prune_report, None
        return report


@dataclass
class DenoisingStep:
    """One forward pass: who is in it and where their rows are.

    Attributes:
        requests: in batch order.
        prune_pass: prunes on the way through the layers.
        hidden_states: ``[num_tokens, hidden]``, after the final norm, of the tokens
            that are left; set by the model's forward.
    """

    requests: list[DenoisingRequest]
    prune_pass: PrunePass
    hidden_states: torch.Tensor | None = field(default=None, repr=False)

    def origins(self) -> list[int]:
        """The row of each request's position 0 in ``hidden_states``: negative, or in
        another request, where the step does not compute that position."""
        starts = np.cumsum([0, *map(len, self.requests)])[:-1]
        first = [request.computed.first for request in self.requests]
        return (starts - first).tolist()


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
        self._lladav = cast("LlavaLLaDAModelLM", model)
        self._attentions = decoder.attentions(self._lladav.model)
        self._mask_token_id = self.model_config.hf_config.mask_token_id
        self._requests: dict[str, DenoisingRequest] = {}
        self._step: DenoisingStep | None = None
        self._attention_inputs: Callable[[np.ndarray], AttentionInputs] | None = None
        self.on_pruned: OnPruned | None = None

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
        images = [feature.mm_position for feature in new_req_data.mm_features]
        visual = [np.arange(i.offset, i.offset + i.length) for i in images]
        lengths = [image.length for image in images]
        self._requests[new_req_data.req_id] = DenoisingRequest(
            req_id=new_req_data.req_id,
            canvas=Canvas(
                params,
                prompt,
                self._mask_token_id,
                # After a preemption vLLM sends the answer so far with the prompt.
                num_emitted=len(new_req_data.prefill_token_ids) - len(prompt),
            ),
            plan=StepPlan(params, len(prompt), tuple(lengths)),
            generator=generator,
            visual=torch.tensor(
                np.concatenate([np.empty(0, np.int64), *visual]), device=self.device
            ),
            image_ids=torch.tensor(
                np.repeat(np.arange(len(images)), lengths), device=self.device
            ),
            on_pruned=self.on_pruned,
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
        assert self._attention_inputs is not None
        prune_pass = PrunePass(requests, self._attentions, self._attention_inputs)
        self._step = DenoisingStep(requests, prune_pass)
        for req_id, request in zip(input_batch.req_ids, requests, strict=True):
            if request.prompt_embeds is None:
                request.prompt_embeds = self._embed_prompt(req_id, request.canvas)
        spans = [request.computed for request in requests]
        tails = [
            request.canvas.token_ids[max(first, request.canvas.prompt_len) : end]
            for request, (first, end) in zip(requests, spans, strict=True)
        ]
        tail_embeds = self._embed(np.concatenate(tails)).split(list(map(len, tails)))
        parts: list[Any] = []
        for request, span, tail in zip(requests, spans, tail_embeds, strict=True):
            if span.first == 0:
                parts.append(request.prompt_embeds)
            parts.append(tail)
        torch.cat(parts, out=embeds[: input_batch.num_tokens])
        return embeds

    def dummy_inputs_embeds(self, num_tokens: int) -> torch.Tensor:
        return self.encoder_runner.inputs_embeds[:num_tokens]

    def prepare_inputs(
        self, input_batch: InputBatch, req_states: RequestState
    ) -> dict[str, Any]:
        if self._step is None:
            return {}
        inputs: dict[str, Any] = {"step": self._step}
        requests = self._step.requests
        if any(request.positions is not None for request in requests):
            inputs["positions"] = self._rotary_positions(
                requests, input_batch.num_tokens_after_padding
            )
        return inputs

    def _rotary_positions(
        self, requests: Sequence[DenoisingRequest], num_tokens: int
    ) -> torch.Tensor:
        """``[num_tokens]``, int64; 0 where the batch is padded."""
        parts = []
        for request in requests:
            first, end = request.computed
            if request.positions is None:
                parts.append(torch.arange(first, end, device=self.device))
            else:
                parts.append(request.positions[first:end])
        num_padding = num_tokens - sum(map(len, parts))
        return torch.cat([*parts, parts[0].new_zeros(num_padding)])

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
        seq_lens, seq_lens_cpu = (
            input_batch.seq_lens,
            input_batch.seq_lens_cpu_upper_bound,
        )
        requests = [self._requests.get(req_id) for req_id in input_batch.req_ids]
        if any(r and r.computed.end < len(r.canvas) for r in requests):
            # K/V behind the current block is attended to as well.
            whole = [len(request.canvas) for request in requests if request]
            seq_lens_cpu = torch.tensor(whole, dtype=torch.int32)
            seq_lens = seq_lens_cpu.to(self.device)
        build = partial(
            build_attn_metadata,
            attn_groups=attn_groups,
            num_reqs=num_reqs,
            block_tables=block_tables,
            kv_cache_config=kv_cache_config,
            causal=False,
        )
        starts = input_batch.query_start_loc_np[:num_reqs]
        self._attention_inputs = partial(
            self._shortened_attention,
            build,
            starts,
            slot_mappings,
        )
        return build(
            num_tokens=input_batch.num_tokens,
            query_start_loc_gpu=input_batch.query_start_loc[: num_reqs + 1],
            query_start_loc_cpu=torch.from_numpy(
                input_batch.query_start_loc_np[: num_reqs + 1]
            ),
            max_query_len=int(input_batch.num_scheduled_tokens.max()),
            seq_lens=seq_lens,
            max_seq_len=int(seq_lens_cpu[:num_reqs].max()),
            slot_mappings=slot_mappings,
            seq_lens_cpu_upper_bound=seq_lens_cpu,
            positions=input_batch.positions,
            for_cudagraph_capture=for_capture,
            ubatch_idx=ubatch_idx,
        )

    def _shortened_attention(
        self,
        build: Callable[..., dict[str, Any]],
        starts: np.ndarray,
        slot_mappings: torch.Tensor,
        lengths: np.ndarray,
    ) -> AttentionInputs:
        """The same batch with fewer tokens: ``lengths`` (``[num_reqs]``, int32) of
        each request, in the first of the KV slots that it had."""
        assert self._step is not None
        spans = [request.computed for request in self._step.requests]
        positions = np.concatenate([np.arange(first, end) for first, end in spans])
        firsts = np.array([span.first for span in spans])
        tokens = np.repeat(starts - firsts, lengths) + positions
        seq_lens = np.array([len(r.canvas) for r in self._step.requests], np.int32)
        query_start_loc = np.cumsum([0, *lengths], dtype=np.int32)
        to_device = partial(async_tensor_h2d, device=self.device)
        slot_mappings = slot_mappings[:, to_device(tokens, dtype=torch.int64)]
        metadata = build(
            num_tokens=len(tokens),
            query_start_loc_gpu=to_device(query_start_loc),
            query_start_loc_cpu=torch.from_numpy(query_start_loc),
            max_query_len=int(lengths.max()),
            seq_lens=to_device(seq_lens),
            max_seq_len=int(seq_lens.max()),
            slot_mappings=slot_mappings,
            seq_lens_cpu_upper_bound=torch.from_numpy(seq_lens),
            positions=to_device(positions, dtype=torch.int64),
        )
        return AttentionInputs(metadata, slot_mappings[0])

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
