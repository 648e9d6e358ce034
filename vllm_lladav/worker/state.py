# SPDX-License-Identifier: Apache-2.0
"""What a worker keeps of the running requests, and the inputs of each step."""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.platforms import current_platform
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.gpu.attn_utils import build_attn_metadata
from vllm.v1.worker.gpu.block_table import BlockTables
from vllm.v1.worker.gpu.input_batch import InputBatch, InputBuffers
from vllm.v1.worker.gpu.mm.encoder_cache import EncoderCache
from vllm.v1.worker.gpu.model_states.interface import ModelState
from vllm.v1.worker.gpu.states import RequestState
from vllm.v1.worker.utils import AttentionGroup

from vllm_lladav.denoising.canvas import Canvases, CanvasRequest
from vllm_lladav.denoising.params import channel_of, denoising_params, is_resolved
from vllm_lladav.denoising.plan import StepPlan
from vllm_lladav.denoising.traits import traits_of
from vllm_lladav.denoising.whole_graphs import graph_rows_of
from vllm_lladav.worker.attention import AttendedSequence, StepAttention
from vllm_lladav.worker.batch_step import BatchStep, OnStep
from vllm_lladav.worker.contract import DenoisingModel
from vllm_lladav.worker.frames import WatchedVisual
from vllm_lladav.worker.logprobs import CanvasLogprobs
from vllm_lladav.worker.memory import Reserve, prompt_embeds_bytes
from vllm_lladav.worker.prune_pass import AttentionInputs, PrunePass
from vllm_lladav.worker.request import DenoisingRequest, OnPruned
from vllm_lladav.worker.sampler import DenoisingSampler

if TYPE_CHECKING:
    from vllm_lladav.worker.step_graphs import Replay, StepGraphs


class DenoisingState(ModelState):
    """vLLM's per-model worker state (Model Runner V2).

    vLLM's own token buffers hold the prompt and nothing of the canvas: every
    step runs on embeddings that are put together here.
    """

    def __init__(
        self,
        vllm_config: VllmConfig,
        model: nn.Module,
        encoder_cache: EncoderCache | None,
        device: torch.device,
    ) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        self._decoder = cast(DenoisingModel, model)
        self._attentions = self._decoder.attentions()
        self._clear_blocks: Callable[[torch.Tensor], None] | None = None
        if self._attentions[0].attn_backend.get_name() == "CPU_ATTN":
            from vllm_lladav.worker import cpu_attention

            if cpu_attention.is_torch_faster():
                # In time: vLLM asks the layers for their backend once it makes the KV
                # cache.
                cpu_attention.attend_split(self._attentions)
            self._clear_blocks = partial(cpu_attention.clear_blocks, self._attentions)
        self._mask_token_id = traits_of(self.model_config).mask_token_id
        max_num_seqs = vllm_config.scheduler_config.max_num_seqs
        self._canvases = Canvases(self._mask_token_id, max_num_seqs, device)
        self._requests: dict[str, DenoisingRequest] = {}
        self._step: BatchStep | None = None
        self._unread: deque[BatchStep] = deque()  # Whose reports were not read.
        # Whether the host may be a step ahead: on a CPU nothing runs beside it.
        self.is_queued = device.type != "cpu"
        self._attention: StepAttention | None = None
        self._graphs: StepGraphs | None = None
        self._replay: Replay | None = None
        self._block_size = 0
        most = 0
        if not current_platform.is_cpu():  # Where vLLM profiles no memory.
            memory = current_platform.get_device_total_memory()
            most = prompt_embeds_bytes(vllm_config, self._attentions, memory)
        self._prompt_reserve = Reserve(most, device)
        self.on_pruned: OnPruned | None = None
        self.on_step: OnStep | None = None

    def custom_sampler(self, sampler: Any) -> tuple[Any, Any]:
        traits = traits_of(self.model_config)
        return DenoisingSampler(
            self._decoder, traits, self.device, self._canvases, self._take_step
        ), None

    def initialize_kv_cache(
        self, kv_cache_config: KVCacheConfig, block_tables: BlockTables
    ) -> None:
        self._graphs = None  # They write to the KV cache that they were captured with.

    def capture_inner_cudagraphs(
        self,
        input_buffers: InputBuffers,
        block_tables: BlockTables,
        attn_groups: list[list[AttentionGroup]],
        kv_cache_config: KVCacheConfig,
    ) -> None:
        self._graphs = None  # While vLLM measures memory, it captures, too.
        num_rows = graph_rows_of(self.model_config)
        if not num_rows:
            return
        # Leans on more of vLLM than anything else here; only for who asks.
        from vllm_lladav.worker.step_graphs import StepGraphs, graph_sizes

        if not graph_sizes(self.vllm_config, num_rows):
            return
        graphs = StepGraphs(
            self.vllm_config,
            self.device,
            num_rows,
            attn_groups,
            kv_cache_config,
            block_tables,
        )
        embeds = self.encoder_runner.inputs_embeds
        graphs.capture(self.model, input_buffers.positions, embeds)
        self._graphs = graphs

    # ------------------------------------------------------------- requests
    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        sampling_params = new_req_data.sampling_params
        if sampling_params is None or not is_resolved(sampling_params):
            return  # vLLM's own warm-up request
        params = denoising_params(sampling_params)
        prompt = new_req_data.prompt_token_ids
        assert prompt is not None and new_req_data.prefill_token_ids is not None
        logprobs = None
        if sampling_params.logprobs is not None:
            logprobs = CanvasLogprobs(params.gen_length, sampling_params.logprobs)
        images = [feature.mm_position for feature in new_req_data.mm_features]
        visual = [np.arange(i.offset, i.offset + i.length) for i in images]
        lengths = [image.length for image in images]
        watched = None
        if channel_of(sampling_params) is not None:
            watched = WatchedVisual(sum(lengths), self.device)
        # A copy from memory that is not pinned would wait for all that is queued.
        send = partial(async_tensor_h2d, device=self.device)
        prompt_token_ids = np.array(prompt, np.int64)
        prompt_masks = np.flatnonzero(prompt_token_ids == self._mask_token_id)
        # After a preemption vLLM sends the answer so far with the prompt.
        num_emitted = len(new_req_data.prefill_token_ids) - len(prompt)
        self._canvases.add(
            req_index, CanvasRequest(params, len(prompt_masks), num_emitted)
        )
        self._requests[new_req_data.req_id] = DenoisingRequest(
            req_id=new_req_data.req_id,
            slot=req_index,
            plan=StepPlan(params, len(prompt), tuple(lengths)),
            prompt_token_ids=prompt_token_ids,
            logprobs=logprobs,
            visual=send(np.concatenate([np.empty(0, np.int64), *visual])),
            image_ids=send(np.repeat(np.arange(len(images)), lengths)),
            prompt_masks=send(prompt_masks),
            masks_of=self._canvases.masks_of,
            on_pruned=self.on_pruned,
            watched=watched,
        )

    def remove_request(self, req_id: str) -> None:
        request = self._requests.pop(req_id, None)
        if request is not None:
            # The report of its last step, which has it, may be read much later.
            request.prompt_embeds = None

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
        prune_pass = PrunePass(requests, self._attentions, self._attention_inputs)
        batch = self._canvases.batch([request.slot for request in requests])
        replay = None if self._replay is None else self._replay.run
        self._step = BatchStep(requests, batch, prune_pass, self.on_step, replay)
        for request in requests:
            if request.prompt_embeds is None:
                request.prompt_embeds = self._embed_prompt(request)
            elif request.num_prompt_masks:
                tokens = self._canvases.tokens[request.slot, : request.num_prompt_masks]
                masks = self._decoder.embed_input_ids(tokens)
                request.prompt_embeds[request.prompt_masks] = masks
        tails = self._embed_tails(requests)
        parts: list[Any] = []
        for request, tail in zip(requests, tails, strict=True):
            is_full = request.step.computed.first == 0
            if is_full:
                parts.append(request.prompt_embeds)
            parts.append(tail)
            if request.num_sequences == 2:
                if is_full:
                    parts.append(self._mask_embed.expand(request.prompt_len, -1))
                parts.append(tail)
        torch.cat(parts, out=embeds[: input_batch.num_tokens])
        return embeds

    def _embed_tails(
        self, requests: Sequence[DenoisingRequest]
    ) -> tuple[torch.Tensor, ...]:
        """What the step computes of canvas and suffix: ``[n, hidden]`` of each."""
        tokens = self._canvases.tokens
        starts, lengths = [], []
        for request in requests:
            span, prompt_len = request.step.computed, request.prompt_len
            first = max(span.first, prompt_len)
            column = request.num_prompt_masks + first - prompt_len
            starts.append(request.slot * tokens.shape[1] + column)
            lengths.append(span.end - first)
        offsets = np.cumsum(lengths) - lengths
        places = np.arange(sum(lengths)) + np.repeat(starts - offsets, lengths)
        token_ids = tokens.view(-1)[async_tensor_h2d(places, device=self.device)]
        return self._decoder.embed_input_ids(token_ids).split(lengths)

    def dummy_inputs_embeds(self, num_tokens: int) -> torch.Tensor:
        return self.encoder_runner.inputs_embeds[:num_tokens]

    def prepare_inputs(
        self, input_batch: InputBatch, req_states: RequestState
    ) -> dict[str, Any]:
        if self._step is None:
            self._prompt_reserve.hold()
            return {}
        # vLLM's runner appends what a step hands out, the report included, to a row of
        # its own, which nobody reads, and past whose end lies the next request's.
        req_states.total_len.gpu[input_batch.idx_mapping] = 0
        inputs: dict[str, Any] = {"step": self._step}
        requests = self._step.requests
        if any(r.positions is not None or r.num_sequences > 1 for r in requests):
            self._write_rotary_positions(requests, input_batch.positions)
        return inputs

    def _write_rotary_positions(
        self, requests: Sequence[DenoisingRequest], out: torch.Tensor
    ) -> None:
        """Into the runner's buffer (``[num_tokens]``, int64): a captured graph reads no
        other."""
        parts = []
        for request in requests:
            first, end = request.step.computed
            if request.positions is None:
                positions = torch.arange(first, end, device=self.device)
            else:
                positions = request.positions[first:end]
            parts += [positions] * request.num_sequences
        torch.cat(parts, out=out[: sum(map(len, parts))])

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
        """Attention metadata per layer: every token attends to all of its sequence."""
        self._prompt_reserve.release()
        build = partial(
            build_attn_metadata,
            attn_groups=attn_groups,
            kv_cache_config=kv_cache_config,
            for_cudagraph_capture=for_capture,
            ubatch_idx=ubatch_idx,
            causal=False,
        )
        (group,) = kv_cache_config.kv_cache_groups
        self._block_size = group.kv_cache_spec.block_size
        self._attention = StepAttention(build, block_tables[0], self._block_size)
        requests = [self._requests.get(req_id) for req_id in input_batch.req_ids]
        known = [request for request in requests if request is not None]
        self._read_reports(known)
        for request in known:
            request.begin_step()
        if self._clear_blocks is not None:
            unfilled = [
                blocks
                for row, request in enumerate(requests)
                if request is not None and request.prompt_embeds is None
                for blocks in self._unfilled_blocks(request, row)
            ]
            if unfilled:
                self._clear_blocks(torch.cat(unfilled).long())
        self._replay = self._find_graph(known, len(requests))
        if len(known) == len(requests) and any(r.num_sequences > 1 for r in known):
            inputs = self._attention.inputs(self._sequences(known))
            # The runner, which knows one sequence for each request, has handed out
            # views of this buffer.
            slot_mappings[0, : len(inputs.slot_mapping)] = inputs.slot_mapping
            return inputs.metadata if self._replay is None else self._replay.metadata
        if self._replay is not None:
            return self._replay.metadata
        if len(known) == len(requests):
            lengths = np.array([request.step.num_slots for request in known], np.int32)
            seq_lens_cpu = torch.from_numpy(lengths)
            seq_lens = async_tensor_h2d(lengths, device=self.device)
        else:  # vLLM's own warm-up requests, which have no canvas.
            seq_lens_cpu = input_batch.seq_lens_cpu_upper_bound
            seq_lens = input_batch.seq_lens
        num_reqs = input_batch.num_reqs
        starts = input_batch.query_start_loc_np[: num_reqs + 1]
        return build(
            num_reqs=num_reqs,
            num_tokens=input_batch.num_tokens,
            query_start_loc_gpu=input_batch.query_start_loc[: num_reqs + 1],
            query_start_loc_cpu=torch.from_numpy(starts),
            max_query_len=int(input_batch.num_scheduled_tokens.max()),
            seq_lens=seq_lens,
            max_seq_len=int(seq_lens_cpu[:num_reqs].max()),
            block_tables=block_tables,
            slot_mappings=slot_mappings,
            seq_lens_cpu_upper_bound=seq_lens_cpu,
            positions=input_batch.positions,
        )

    def _find_graph(
        self, known: Sequence[DenoisingRequest], num_requests: int
    ) -> "Replay | None":
        """The step as one CUDA graph. Where it prunes, it has none."""
        if self._graphs is None or len(known) < num_requests:
            return None
        if any(request.step.stages for request in known):
            return None
        assert self._attention is not None
        return self._graphs.find(self._sequences(known), self._attention.block_tables)

    def _sequences(
        self, requests: Sequence[DenoisingRequest]
    ) -> list[AttendedSequence]:
        """What attends in this step: every sequence of the batch, as it is now."""
        parts = [r.sequences(row, self._block_size) for row, r in enumerate(requests)]
        return [sequence for part in parts for sequence in part]

    def _unfilled_blocks(
        self, request: DenoisingRequest, row: int
    ) -> list[torch.Tensor]:
        """KV blocks whose end a new request may not write, but attention read: the last
        one of each sequence, or any if it will be shorter."""
        assert self._attention is not None
        sequences = request.sequences(row, self._block_size)
        blocks = [self._attention.blocks(sequence) for sequence in sequences]
        return blocks if request.pruning else [part[-1:] for part in blocks]

    def _attention_inputs(self) -> AttentionInputs:
        """The step's, as its requests are now: pruned on the way."""
        assert self._attention is not None and self._step is not None
        return self._attention.inputs(self._sequences(self._step.requests))

    def _take_step(self) -> BatchStep | None:
        """The step whose forward pass just ran; None in warm-up runs."""
        step, self._step = self._step, None
        if step is not None:
            self._unread.append(step)
        return step

    def _read_reports(self, requests: Sequence[DenoisingRequest]) -> None:
        """Learn what earlier steps decided, before a step of ``requests``.

        The last one's report is left for later, so that this step can be launched
        before that one is done; not so where blocks decide what is computed.
        """
        is_behind = self.is_queued
        is_behind &= not any(request.plan.follows_blocks for request in requests)
        while len(self._unread) > is_behind:
            step = self._unread.popleft()
            assert step.report is not None
            rows = step.report.read().tolist()
            for request, row in zip(step.requests, rows, strict=True):
                request.learn(*row)

    @property
    def _mask_embed(self) -> torch.Tensor:
        """Embedding of the mask token: ``[1, hidden]``."""
        return self._decoder.embed_input_ids(
            torch.full((1,), self._mask_token_id, device=self.device)
        )

    def _embed_prompt(self, request: DenoisingRequest) -> torch.Tensor:
        """``[P, hidden]``, visual tokens merged in."""
        prompt_len = len(request.prompt_token_ids)
        visual, is_visual = self.encoder_runner.gather_mm_embeddings(
            [request.req_id],
            prompt_len,
            np.array([prompt_len]),
            np.array([0, prompt_len]),
            prefill_lens=np.array([prompt_len]),
            num_computed_tokens=np.array([0]),
        )
        return self._decoder.embed_input_ids(
            async_tensor_h2d(request.prompt_token_ids, device=self.device),
            multimodal_embeddings=visual,
            is_multimodal=is_visual,
        )
