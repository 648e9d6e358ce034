# SPDX-License-Identifier: Apache-2.0
"""One denoising step of every running request per iteration.

A request is admitted when its whole first step fits: all its tokens into what the
steps of the others leave of the token budget, and all its KV blocks into the pool. It
never waits for blocks again. For tokens it may: later steps of those that were
admitted one after the other, each beside short cached ones, can be full at the same
time and exceed the budget together. The requests that have waited longest then go
first, whatever their steps are, so that each of them gets on: a step fits alone.

Requests are admitted strictly in the order of vLLM's queue (arrival, or priority): the
first one that does not fit holds back those behind it, which is what keeps large
requests from starving.

A full step takes as long as many cached ones. Where requests with cached steps run, the
full steps of an iteration are therefore limited (``full_step_tokens``) and take turns,
those of running requests and first ones alike.
"""

import time
from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.engine import EngineCoreEventType
from vllm.v1.request import Request, RequestStatus

from vllm_lladav.denoising.plan import Step
from vllm_lladav.options.reading import server_of
from vllm_lladav.scheduler.batch import Batch
from vllm_lladav.scheduler.output import DenoisingOutput


class DenoisingScheduler(DenoisingOutput):
    """vLLM's scheduler with denoising steps instead of prefill and decode.

    Inherited as they are: queues, KV cache manager, encoder cache, preemption
    bookkeeping, statistics, aborts.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._full_step_tokens = server_of(self.vllm_config).full_step_tokens

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Run every running request and admit what fits.

        ``throttle_prefills`` balances prefills between data-parallel ranks;
        every denoising step is alike, so there is nothing to throttle.
        """
        self.current_step += 1
        self.kv_cache_manager.new_step_starts()
        has_cached = any(not self._step(request).is_full for request in self.running)
        is_paused = self._pause_state == PauseState.PAUSED_ALL
        batch = Batch(
            0 if is_paused else self.max_num_scheduled_tokens,
            self.max_num_encoder_input_tokens,
            self._full_step_tokens if has_cached else 0,
        )
        self._schedule_running(batch)
        self._admit_waiting(batch)
        output = self._make_output(batch)
        self._update_after_schedule(output)
        return output

    def _step(self, request: Request) -> Step:
        """The request's next step."""
        return self._progress[request.request_id].step

    def _schedule_running(self, batch: Batch) -> None:
        """Those that have waited longest first. Where full steps take turns, newcomers
        that have waited longer go before them."""
        ready = [
            (request, progress)
            for request in self.running
            if (progress := self._progress[request.request_id]).is_ready
            # A preempted request's old output may still be coming in.
            and not request.num_stale_output_tokens
        ]
        # Of those that ran in the same iteration, cached steps first.
        ready.sort(key=lambda turn: (turn[1].waits_since, turn[1].step.is_full))
        batch.reserved = {r.request_id: p.step.num_rows for r, p in ready}
        for request, progress in ready:
            if batch.full_step_tokens and progress.step.is_full:
                self._admit_waiting(batch, progress.waits_since)
            # Not there if it was preempted just now.
            is_running = batch.reserved.pop(request.request_id, None) is not None
            if is_running and batch.allows(progress.step):
                self._take(request, self.kv_cache_manager.empty_kv_cache_blocks, batch)
                batch.running.append(request)

    def _admit_waiting(self, batch: Batch, before: int | None = None) -> None:
        """In the queue's order; those that came ``before`` an iteration, or all."""
        while self._pause_state == PauseState.UNPAUSED and self.waiting:
            request = self.waiting.peek_request()
            since = self._progress[request.request_id].waits_since
            if before is not None and since >= before:
                return
            if not self._admit(request, batch):
                return

    def _admit(self, request: Request, batch: Batch) -> bool:
        """Admit the first waiting request if its whole first step fits."""
        step = self._step(request)
        if request.num_stale_output_tokens or not batch.allows_full_step(step):
            return False
        blocks = None
        num_sequences = self._num_sequences([*self.running, request])
        if batch.has_room(step) and num_sequences <= self.max_num_active_reqs:
            blocks = self._allocate(request, step, batch)
        if blocks is None:
            return self._make_room(request, batch)
        self.waiting.pop_request()
        self.running.append(request)
        timestamp = time.monotonic()
        if self.log_stats:
            request.record_event(EngineCoreEventType.SCHEDULED, timestamp)
        if request.prefill_stats and request.num_preemptions == 0:
            request.prefill_stats.set(
                num_prompt_tokens=request.num_prompt_tokens,
                num_local_cached_tokens=0,
                num_external_cached_tokens=0,
            )
        request.status = RequestStatus.RUNNING
        self._take(request, blocks, batch)
        batch.new.append(request)
        return True

    def _num_sequences(self, requests: list[Request]) -> int:
        """That attend in a step: a guided request has two."""
        return sum(
            self._step(request).plan.params.num_sequences for request in requests
        )

    def _allocate(
        self, request: Request, step: Step, batch: Batch
    ) -> KVCacheBlocks | None:
        """Reserve KV blocks and encoder work for a first step, all or nothing."""
        request.num_computed_tokens = 0
        images, num_covered, budget, _, duplicates = self._try_schedule_encoder_inputs(
            request, 0, step.num_rows, batch.encoder_budget
        )
        blocks = None
        if num_covered == step.num_rows:
            blocks = self.kv_cache_manager.allocate_slots(
                request,
                step.num_held_slots(self.block_size),
                has_scheduled_reqs=bool(self.running),
            )
        if blocks is None:
            self.encoder_cache_manager.free(request)
            return None
        self._allocate_encoder_inputs(request, images, duplicates)
        batch.encoder_budget = budget
        if images:
            batch.encoder_inputs[request.request_id] = images
        self._stats.num_images += len(request.mm_features)
        self._stats.num_images_encoded += len(images)
        self._stats.num_visual_tokens += step.plan.num_visual
        return self.kv_cache_manager.get_blocks(request.request_id)

    def _make_room(self, request: Request, batch: Batch) -> bool:
        """Preempt the least important running request for a more important one.

        Returns whether trying again makes sense.
        """
        if self.policy != SchedulingPolicy.PRIORITY or not self.running:
            return False
        victim = max(self.running, key=lambda r: (r.priority, r.arrival_time))
        if victim.priority <= request.priority:
            return False
        self.running.remove(victim)
        batch.drop(victim)
        self._preempt_request(victim, time.monotonic())
        return True

    def _take(self, request: Request, blocks: KVCacheBlocks, batch: Batch) -> None:
        step = self._step(request)
        request.num_computed_tokens = step.computed.first
        batch.take(request, step, blocks)

    def _make_output(self, batch: Batch) -> SchedulerOutput:
        return SchedulerOutput(
            scheduled_new_reqs=[
                NewRequestData.from_request(
                    request,
                    batch.blocks[request.request_id].get_block_ids(),
                    request._all_token_ids,
                )
                for request in batch.new
            ],
            scheduled_cached_reqs=self._make_cached_request_data(
                batch.running, [], batch.num_tokens, {}, batch.blocks
            ),
            num_scheduled_tokens=batch.num_tokens,
            total_num_scheduled_tokens=sum(batch.num_tokens.values()),
            scheduled_spec_decode_tokens={},
            scheduled_encoder_inputs=batch.encoder_inputs,
            preempted_req_ids=self.reset_preempted_req_ids,
            finished_req_ids=self.finished_req_ids,
            free_encoder_mm_hashes=self.encoder_cache_manager.get_freed_mm_hashes(),
            new_block_ids_to_zero=self._get_new_block_ids_to_zero(),
            num_spec_tokens_to_schedule=0,
            ec_manager_metadata=self.encoder_cache_manager.get_manager_metadata(),
        )
