# SPDX-License-Identifier: Apache-2.0
"""Denoising steps of running requests, and first ones of those that are admitted.

An iteration has the cached steps of all requests that can run one, those first that
have waited longest, and full steps in the order of :mod:`vllm_lladav.scheduler.turns`,
as many as ``full_step_tokens`` allows, one at least. A step fits into the token budget
alone; where that does not hold the first full step and all cached ones, the two kinds
take turns.
"""

from typing import Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.request import Request, RequestStatus

from vllm_lladav.denoising.plan import Step
from vllm_lladav.options.reading import server_of
from vllm_lladav.scheduler.admission import DenoisingAdmission
from vllm_lladav.scheduler.batch import Batch
from vllm_lladav.scheduler.turns import Turn, Turns

KNEE = 256
"""Tokens below which an iteration should have full steps, too. Reading the weights
takes a GPU as long as their arithmetic for about 300 tokens (H100; 150 on an A100).
A CPU is as fast with fewer, but cached steps of eight requests took 16% less time
together than with a knee of 16, which lets each request run ahead of the next."""


class DenoisingScheduler(DenoisingAdmission):
    """vLLM's scheduler with denoising steps instead of prefill and decode.

    Inherited as they are: queues, KV cache manager, encoder cache, preemption
    bookkeeping, statistics, aborts.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._full_step_tokens = server_of(self.vllm_config).full_step_tokens
        self._turns = Turns(KNEE)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        """Give steps to requests, and admit those whose turn it is.

        ``throttle_prefills`` balances prefills between data-parallel ranks;
        every denoising step is alike, so there is nothing to throttle.
        """
        self.current_step += 1
        self.kv_cache_manager.new_step_starts()
        batch = Batch(
            self.max_num_scheduled_tokens,
            self.max_num_encoder_input_tokens,
            self._full_step_tokens,
        )
        if self._pause_state != PauseState.PAUSED_ALL:
            self._fill(batch)
        output = self._make_output(batch)
        self._update_after_schedule(output)
        return output

    def _fill(self, batch: Batch) -> None:
        """Cached steps, those first that have waited longest, and full ones in turn."""
        full, between = self._next_steps()
        turns = self._turns.ordered(map(self._turn, (*full, *self._admissible())))
        if between and turns:
            num_rows = sum(step.num_rows for _, step in between)
            priority = min(self._priority(request) for request, _ in between)
            turns = [] if self._turns.are_held(turns, num_rows, priority) else turns
        due = [self.requests[turn.request_id] for turn in turns]
        cached = [request for request, _ in between if self._is_ready(request)]
        cached.sort(key=lambda r: self._progress[r.request_id].waits_since)
        # Cached steps leave room for one full one, or else it for them.
        num_before = 0 if self._turns.is_cached_first else 1
        for request in (*due[:num_before], *cached, *due[num_before:]):
            self._run(request, batch)
        is_cached_left = any(r.request_id not in batch.num_tokens for r in cached)
        self._turns.count(turns, batch.full_rows, batch.cached_rows, is_cached_left)

    def _next_steps(self) -> tuple[list[Request], list[tuple[Request, Step]]]:
        """Running requests whose full step can run, and those that are between full
        steps, be it that output is awaited."""
        full, between = [], []
        for request in self.running:
            progress = self._progress[request.request_id]
            if not progress.step.is_full and progress.has_steps:
                between.append((request, progress.step))
            elif self._is_ready(request):
                full.append(request)
        return full, between

    def _is_ready(self, request: Request) -> bool:
        # A preempted request's old output may still be coming in.
        is_ready = self._progress[request.request_id].is_ready
        return is_ready and not request.num_stale_output_tokens

    def _turn(self, request: Request) -> Turn:
        progress = self._progress[request.request_id]
        return Turn(
            self._priority(request),
            progress.full_rows_left,
            progress.arrival,
            request.request_id,
            progress.plan.params.cache == "none",
        )

    def _priority(self, request: Request) -> int:
        """The lower, the more important."""
        return request.priority if self.policy == SchedulingPolicy.PRIORITY else 0

    def _run(self, request: Request, batch: Batch) -> None:
        """If there is room."""
        step = self._step(request)
        if request.request_id in batch.preempted or not batch.allows(step):
            return
        if request.status != RequestStatus.RUNNING:
            self._admit(request, step, batch)
        else:
            self._take(request, self.kv_cache_manager.empty_kv_cache_blocks, batch)
            batch.running.append(request)

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
