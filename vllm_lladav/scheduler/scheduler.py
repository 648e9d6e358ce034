# SPDX-License-Identifier: Apache-2.0
"""One denoising step of every running request per iteration.

A request is admitted when its whole first step fits: all its tokens into the
token budget and all its KV blocks into the pool. From then on it runs in every
iteration until its canvas is done, so it never waits for blocks again; the blocks
of tokens that a step prunes go back to the pool when that step is dispatched. Requests
are admitted strictly in the order of vLLM's queue (arrival, or priority): the
first one that does not fit holds back those behind it, which is what keeps
large requests from starving.

A full step takes as long as many cached ones. Where requests with cached steps run, the
full steps of an iteration are therefore limited (``full_step_tokens``) and take turns,
those of running requests and first ones alike.
"""

import time
from collections import deque
from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import (
    EngineCoreEventType,
    EngineCoreOutput,
    EngineCoreOutputs,
)
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from vllm_lladav.denoising.marks import FinishMark, PruneReport, StepReport
from vllm_lladav.denoising.params import denoising_params
from vllm_lladav.denoising.plan import StepPlan
from vllm_lladav.options.reading import server_of
from vllm_lladav.scheduler.batch import Batch
from vllm_lladav.scheduler.kv_blocks import shrink
from vllm_lladav.scheduler.progress import Progress
from vllm_lladav.scheduler.stats import DenoisingStats


class DenoisingScheduler(Scheduler):
    """vLLM's scheduler with denoising steps instead of prefill and decode.

    Inherited as they are: queues, KV cache manager, encoder cache, preemption
    bookkeeping, statistics, aborts.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_sampled_tokens_per_step = 0
        self._progress: dict[str, Progress] = {}
        self._finish_marks: dict[str, int] = {}
        self._full_step_tokens = server_of(self.vllm_config).full_step_tokens
        self._stats = DenoisingStats.empty()
        self._dispatch_times: deque[float] = deque()

    # ------------------------------------------------------------- requests
    def add_request(self, request: Request) -> None:
        params = denoising_params(request.sampling_params)
        images = tuple(feature.mm_position.length for feature in request.mm_features)
        self._progress[request.request_id] = Progress.start(
            StepPlan(params, request.num_prompt_tokens, images), self.current_step
        )
        super().add_request(request)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        progress = self._progress.pop(request.request_id)
        super()._free_request(request, *args, **kwargs)
        # vLLM hands these on to the client; KV transfer, which they are for, cannot
        # be on.
        num_tokens = request.num_output_tokens
        if request.status != RequestStatus.FINISHED_ABORTED:
            self._stats.tokens_per_step.append(progress.tokens_per_step(num_tokens))
        return progress.report(num_tokens), None

    def _preempt_request(
        self, request: Request, timestamp: float, drop_stale_output: bool = False
    ) -> None:
        # The worker starts the canvas again and leaves out what it emitted
        # before; output that is still on its way would be emitted twice.
        super()._preempt_request(request, timestamp, drop_stale_output=True)
        plan = self._progress[request.request_id].plan
        self._progress[request.request_id] = Progress.start(plan, self.current_step)

    # ------------------------------------------------------------- scheduling
    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Run every running request and admit what fits.

        ``throttle_prefills`` balances prefills between data-parallel ranks;
        every denoising step is alike, so there is nothing to throttle.
        """
        self.current_step += 1
        self.kv_cache_manager.new_step_starts()
        progresses = [self._progress[r.request_id] for r in self.running]
        has_cached = any(not progress.is_full for progress in progresses)
        batch = Batch(
            self._token_budget(),
            self.max_num_encoder_input_tokens,
            self._full_step_tokens if has_cached else 0,
        )
        full = []
        for request in [request for request in self.running if self._is_ready(request)]:
            if self._progress[request.request_id].is_full:
                full.append(request)
            else:
                self._schedule_running(request, batch)
        if batch.full_step_tokens:
            self._schedule_in_turn(full, batch)
        else:
            for request in full:
                self._schedule_running(request, batch)
            self._admit_waiting(batch)
        output = self._make_output(batch)
        self._update_after_schedule(output)
        return output

    def _schedule_in_turn(self, full: list[Request], batch: Batch) -> None:
        """Those that have waited longest first, whether they run or come."""
        since = {r.request_id: self._progress[r.request_id].waits_since for r in full}
        for request in full:
            tokens = self._progress[request.request_id].num_tokens
            batch.reserved[request.request_id] = tokens
        for request in sorted(full, key=lambda r: since[r.request_id]):
            self._admit_waiting(batch, since[request.request_id])
            # Not there if it was preempted just now.
            if batch.reserved.pop(request.request_id, None) is not None:
                self._schedule_running(request, batch)
        self._admit_waiting(batch)

    def _admit_waiting(self, batch: Batch, before: int | None = None) -> None:
        """In the queue's order; those that came ``before`` an iteration, or all."""
        while self._pause_state == PauseState.UNPAUSED and self.waiting:
            request = self.waiting.peek_request()
            since = self._progress[request.request_id].waits_since
            if before is not None and since >= before:
                return
            if not self._admit(request, batch):
                return

    def _token_budget(self) -> int:
        if self._pause_state == PauseState.PAUSED_ALL:
            return 0
        return self.max_num_scheduled_tokens

    def _is_ready(self, request: Request) -> bool:
        """Whether the request's next step can be scheduled.

        With asynchronous scheduling all steps may be under way already, and a
        preempted request's old output may still be coming in.
        """
        progress = self._progress[request.request_id]
        return not (
            progress.exhausted
            or progress.awaits_report
            or request.num_stale_output_tokens
        )

    def _schedule_running(self, request: Request, batch: Batch) -> None:
        progress = self._progress[request.request_id]
        num_tokens = progress.num_tokens
        if num_tokens > batch.token_budget or (
            progress.is_full and not batch.allows_full_step(num_tokens)
        ):
            return
        blocks = self.kv_cache_manager.empty_kv_cache_blocks
        self._take(request, num_tokens, blocks, batch)
        batch.running.append(request)

    def _admit(self, request: Request, batch: Batch) -> bool:
        """Admit the first waiting request if its whole first step fits."""
        num_tokens = self._progress[request.request_id].num_tokens
        if request.num_stale_output_tokens or not batch.allows_full_step(num_tokens):
            return False
        blocks = None
        if (
            num_tokens <= batch.unreserved_tokens
            and self._num_sequences([*self.running, request])
            <= self.max_num_active_reqs
        ):
            blocks = self._allocate(request, num_tokens, batch)
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
        self._take(request, num_tokens, blocks, batch)
        batch.new.append(request)
        return True

    def _num_sequences(self, requests: list[Request]) -> int:
        """That attend in a step: a guided request has two."""
        return sum(
            self._progress[request.request_id].plan.params.num_sequences
            for request in requests
        )

    def _allocate(
        self, request: Request, num_tokens: int, batch: Batch
    ) -> KVCacheBlocks | None:
        """Reserve KV blocks and encoder work for a first step, all or nothing."""
        request.num_computed_tokens = 0
        images, num_covered, budget, _, duplicates = self._try_schedule_encoder_inputs(
            request, 0, num_tokens, batch.encoder_budget
        )
        if num_covered < num_tokens:
            self.encoder_cache_manager.free(request)
            return None
        progress = self._progress[request.request_id]
        blocks = self.kv_cache_manager.allocate_slots(
            request,
            progress.num_held_slots(self.block_size),
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
        self._stats.num_visual_tokens += sum(
            feature.mm_position.length for feature in request.mm_features
        )
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

    def _take(
        self, request: Request, num_tokens: int, blocks: KVCacheBlocks, batch: Batch
    ) -> None:
        progress = self._progress[request.request_id]
        request.num_computed_tokens = progress.computed.first
        batch.take(request, num_tokens, blocks, progress.is_full)

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

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        super()._update_after_schedule(scheduler_output)
        if not scheduler_output.num_scheduled_tokens:
            return
        self._dispatch_times.append(time.monotonic())
        for request_id in scheduler_output.num_scheduled_tokens:
            # Advanced at dispatch, not on output: the next step can be
            # scheduled while this one runs.
            progress = self._progress[request_id]
            plan, step = progress.plan, progress.num_dispatched
            progress.num_dispatched += 1
            progress.step_in_block += 1
            progress.waits_since = self.current_step
            progress.awaits_report = plan.follows_blocks
            self._stats.num_drafts += 1
            self._stats.num_draft_tokens += plan.params.gen_length
            if plan.stages(step):
                assert plan.params.pruning is not None
                progress.awaits_report |= plan.params.pruning.is_adaptive
                num_visual = plan.visual_after(step, progress.num_visual)
                self._shrink(request_id, num_visual)

    def _shrink(self, request_id: str, num_visual: int) -> None:
        """Give back the KV blocks that ``num_visual`` visual tokens do not need."""
        progress = self._progress[request_id]
        self._stats.num_visual_tokens_pruned += progress.num_visual - num_visual
        progress.num_visual = num_visual
        num_slots = progress.num_held_slots(self.block_size)
        num_freed = shrink(self.kv_cache_manager, request_id, num_slots)
        progress.num_blocks_returned += num_freed
        self._stats.num_blocks_returned += num_freed

    # ------------------------------------------------------------- output
    def update_from_output(
        self,
        scheduler_output: SchedulerOutput,
        model_runner_output: ModelRunnerOutput,
    ) -> dict[int, EngineCoreOutputs]:
        if scheduler_output.num_scheduled_tokens:
            self._stats.step_seconds.append(
                time.monotonic() - self._dispatch_times.popleft()
            )
        self._take_reports(model_runner_output)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for request_id in list(self._finish_marks):
            self._finish_without_tokens(request_id, outputs)
        return outputs

    def _take_reports(self, output: ModelRunnerOutput) -> None:
        """Take the workers' reports out of the token lists."""
        if not output.sampled_token_ids:
            return
        for request_id, index in output.req_id_to_index.items():
            report = StepReport.take(output.sampled_token_ids[index])
            if report.pruned is not None:
                self._stats.prune_seconds.append(report.pruned.microseconds / 1e6)
            request = self.requests.get(request_id)
            if request is None or request.num_stale_output_tokens:
                continue
            progress = self._progress[request_id]
            progress.num_done += 1
            if report.block is not None:
                progress.follow(report.block, report.stop)
            if report.finish is not None:
                self._finish_marks[request_id] = report.finish
            if report.pruned is not None and request.status == RequestStatus.RUNNING:
                self._apply_prune_report(request_id, report.pruned)

    def _apply_prune_report(self, request_id: str, report: PruneReport) -> None:
        """Adaptive pruning may have dropped more than was planned."""
        progress = self._progress[request_id]
        pruning = progress.plan.params.pruning
        if pruning is not None and pruning.is_adaptive:
            progress.awaits_report = False
            self._shrink(request_id, report.num_visual)

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        for token_id in new_token_ids:
            request.append_output_token_ids(token_id)
        self._stats.num_accepted_tokens += len(new_token_ids)
        mark = self._finish_marks.pop(request.request_id, None)
        if mark is not None:
            request.status, request.stop_reason = _finish_status(request, mark)
        return new_token_ids, mark is not None

    def _finish_without_tokens(
        self, request_id: str, outputs: dict[int, EngineCoreOutputs]
    ) -> None:
        """Finish a request whose last step emitted nothing, such as one whose
        answer is empty: vLLM looks at requests with new tokens only."""
        mark = self._finish_marks.pop(request_id)
        request = self.requests.get(request_id)
        if request is None or request.is_finished():
            return
        status, stop_reason = _finish_status(request, mark)
        events, prefill_stats = request.take_events(), request.take_prefill_stats()
        report = self._progress[request_id].report(request.num_output_tokens)
        self.finish_requests(request_id, status)
        group = outputs.setdefault(request.client_index, EngineCoreOutputs())
        group.outputs.append(
            EngineCoreOutput(
                request_id=request_id,
                new_token_ids=[],
                finish_reason=request.get_finished_reason(),
                stop_reason=stop_reason,
                events=events,
                prefill_stats=prefill_stats,
                kv_transfer_params=report,
                trace_headers=request.trace_headers,
            )
        )

    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        denoising_stats, self._stats = self._stats, DenoisingStats.empty()
        stats = super().make_stats(*args, **kwargs)
        if stats is not None:
            stats.spec_decoding_stats = denoising_stats
        return stats


def _finish_status(
    request: Request, mark: int
) -> tuple[RequestStatus, int | str | None]:
    """vLLM's status and ``stop_reason`` for a worker's finish mark."""
    if mark == FinishMark.LENGTH:
        return RequestStatus.FINISHED_LENGTH_CAPPED, None
    if mark == FinishMark.END_TOKEN:
        return RequestStatus.FINISHED_STOPPED, None
    stops = denoising_params(request.sampling_params).stops
    return RequestStatus.FINISHED_STOPPED, stops[FinishMark.STOP_STRING - mark]
