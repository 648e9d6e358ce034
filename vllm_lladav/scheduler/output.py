# SPDX-License-Identifier: Apache-2.0
"""Requests from their arrival to their output: progress, reports, ends, statistics."""

import time
from collections import deque
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from vllm_lladav.denoising.marks import FinishMark, StepReport
from vllm_lladav.denoising.params import denoising_params
from vllm_lladav.denoising.plan import StepPlan
from vllm_lladav.scheduler.blocks import shrink
from vllm_lladav.scheduler.progress import Progress
from vllm_lladav.scheduler.showing import Showing
from vllm_lladav.scheduler.stats import DenoisingStats

logger = init_logger(__name__)


class DenoisingOutput(Scheduler):
    """vLLM's scheduler for requests that denoise, all but the scheduling itself.

    The KV blocks of tokens that a step prunes go back to the pool when that step is
    dispatched.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_sampled_tokens_per_step = 0
        self._progress: dict[str, Progress] = {}
        self._num_arrived = 0
        self._finish_marks: dict[str, int] = {}
        self._stats = DenoisingStats()
        self._showing = Showing()
        self._dispatch_times: deque[float] = deque()

    # ------------------------------------------------------------- requests
    def add_request(self, request: Request) -> None:
        params = denoising_params(request.sampling_params)
        lengths = tuple(feature.mm_position.length for feature in request.mm_features)
        plan = StepPlan(params, request.num_prompt_tokens, lengths)
        self._progress[request.request_id] = Progress(
            plan, self._num_arrived, self.current_step
        )
        self._num_arrived += 1
        super().add_request(request)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        progress = self._progress.pop(request.request_id)
        self._showing.forget(request.request_id)
        super()._free_request(request, *args, **kwargs)
        # vLLM hands these on to the client; KV transfer, which they are for, cannot
        # be on.
        num_tokens = request.num_output_tokens
        # The front end aborts what its text has ended.
        if request.status != RequestStatus.FINISHED_ABORTED or _stops_in_text(request):
            self._stats.tokens_per_step.append(progress.tokens_per_step(num_tokens))
        return progress.figures(num_tokens), None

    def _preempt_request(
        self, request: Request, timestamp: float, drop_stale_output: bool = False
    ) -> None:
        # The worker starts the canvas again and leaves out what it emitted
        # before; output that is still on its way would be emitted twice.
        super()._preempt_request(request, timestamp, drop_stale_output=True)
        before = self._progress[request.request_id]
        self._progress[request.request_id] = Progress(
            before.plan, before.arrival, self.current_step
        )

    # ------------------------------------------------------------- dispatch
    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        super()._update_after_schedule(scheduler_output)
        if not scheduler_output.num_scheduled_tokens:
            return
        self._dispatch_times.append(time.monotonic())
        for request_id in scheduler_output.num_scheduled_tokens:
            progress = self._progress[request_id]
            self._stats.num_drafts += 1
            self._stats.num_draft_tokens += progress.plan.params.gen_length
            num_dropped = progress.dispatch(self.current_step)
            if num_dropped:
                self._return_blocks(request_id, num_dropped)

    def _return_blocks(self, request_id: str, num_dropped: int) -> None:
        """Free the KV blocks that the next step, without ``num_dropped`` visual tokens,
        does not need."""
        progress = self._progress[request_id]
        num_slots = progress.step.num_held_slots(self.block_size)
        num_freed = shrink(self.kv_cache_manager, request_id, num_slots)
        progress.count_returned(num_freed)
        self._stats.num_visual_tokens_pruned += num_dropped
        self._stats.num_kv_blocks_returned += num_freed

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
        self._showing.take(self.requests, model_runner_output)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        self._add_figures(outputs)
        for request_id in list(self._finish_marks):
            self._finish_without_tokens(request_id, outputs)
        self._showing.add_to(outputs)
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
            num_dropped = self._progress[request_id].report(report)
            if num_dropped:
                self._return_blocks(request_id, num_dropped)
            if report.finish is not None:
                self._finish_marks[request_id] = report.finish

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        for token_id in new_token_ids:
            request.append_output_token_ids(token_id)
        self._stats.num_accepted_tokens += len(new_token_ids)
        is_done = self._finish_marks.get(request.request_id) == FinishMark.LENGTH
        if is_done:
            mark = self._finish_marks.pop(request.request_id)
            request.status, request.stop_reason = _finish_status(request, mark)
        return new_token_ids, is_done

    def _add_figures(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        """Tell what was done so far of requests that their text may end, which the
        front end sees: what it takes for the last output is one of these."""
        for group in outputs.values():
            for output in group.outputs:
                request = self.requests.get(output.request_id)
                if request is not None and _stops_in_text(request):
                    progress = self._progress[request.request_id]
                    figures = progress.figures(request.num_output_tokens)
                    output.kv_transfer_params = figures

    def _finish_without_tokens(
        self, request_id: str, outputs: dict[int, EngineCoreOutputs]
    ) -> None:
        """Finish a request with an output of its own: one whose last step emitted
        nothing, such as one whose answer is empty, since vLLM looks at requests with
        new tokens only; and one that was stopped, since vLLM takes the last token of
        such an output for the stop, which is no part of ours."""
        mark = self._finish_marks.pop(request_id)
        request = self.requests.get(request_id)
        if request is None or request.is_finished():
            return
        status, stop_reason = _finish_status(request, mark)
        events, prefill_stats = request.take_events(), request.take_prefill_stats()
        figures = self._progress[request_id].figures(request.num_output_tokens)
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
                kv_transfer_params=figures,
                trace_headers=request.trace_headers,
            )
        )

    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        denoising_stats, self._stats = self._stats, DenoisingStats()
        stats = super().make_stats(*args, **kwargs)
        if stats is not None:
            stats.spec_decoding_stats = denoising_stats
        return stats


def _stops_in_text(request: Request) -> bool:
    """Whether the front end looks for stop strings in the answer."""
    return bool(request.sampling_params and request.sampling_params.stop)


def _finish_status(
    request: Request, mark: int
) -> tuple[RequestStatus, int | str | None]:
    """vLLM's status and ``stop_reason`` for a worker's finish mark."""
    if mark == FinishMark.LENGTH:
        return RequestStatus.FINISHED_LENGTH_CAPPED, None
    if mark == FinishMark.NOT_FINITE:
        logger.error(
            "Request %s: the model computed numbers that are not finite",
            request.request_id,
        )
        return RequestStatus.FINISHED_ERROR, None
    if mark == FinishMark.END_TOKEN:
        return RequestStatus.FINISHED_STOPPED, None
    stops = denoising_params(request.sampling_params).stops
    return RequestStatus.FINISHED_STOPPED, stops[FinishMark.STOP_STRING - mark]
