# SPDX-License-Identifier: Apache-2.0
"""How far a running request is, as the scheduler knows it."""

from typing import Any

from vllm_lladav.denoising.marks import StepReport
from vllm_lladav.denoising.plan import Step, StepIndex, StepPlan

REPORT_KEY = "lladav"
"""Where in ``kv_transfer_params`` of a response the request's figures are."""


class Progress:
    """How far a request is in its plan.

    It moves when a step is dispatched (:meth:`dispatch`), not when its output is back,
    so that the next step can be scheduled while this one runs. What only the worker
    knows comes with the output (:meth:`report`).

    Args:
        arrival: the request's number, in the order in which requests come.
        iteration: of the scheduler, in which the request comes, or is preempted.
    """

    def __init__(self, plan: StepPlan, arrival: int, iteration: int) -> None:
        self._plan = plan
        self._arrival = arrival
        self._step = plan.first
        self._full_rows_left: int | None = None
        self._waits_since = iteration
        self._awaits_report = False
        self._num_done = 0
        self._num_kv_blocks_returned = 0

    @property
    def plan(self) -> StepPlan:
        return self._plan

    @property
    def arrival(self) -> int:
        """The request's number, in the order in which requests came."""
        return self._arrival

    @property
    def step(self) -> Step:
        """The request's next step, as far as is known."""
        return self._step

    @property
    def full_rows_left(self) -> int:
        """Tokens that the full steps to come compute, the next step included, as far as
        is known."""
        if self._full_rows_left is None:
            step = self._step
            self._full_rows_left = self._plan.full_rows_left(
                step.index, step.num_visual
            )
        return self._full_rows_left

    @property
    def waits_since(self) -> int:
        """The scheduler's iteration in which the request last ran, or came."""
        return self._waits_since

    @property
    def has_steps(self) -> bool:
        """Whether there is a next step. With asynchronous scheduling all may be under
        way already."""
        return self._step.index.step < self._plan.params.steps

    @property
    def is_ready(self) -> bool:
        """Whether the next step can be dispatched: what it computes may depend on
        output that is not back."""
        return self.has_steps and not self._awaits_report

    def dispatch(self, iteration: int) -> int:
        """The next step is under way, in this iteration of the scheduler.

        Returns:
            The visual tokens that it drops; at least, if pruning is adaptive.
        """
        step, pruning = self._step, self._plan.params.pruning
        drops_more = bool(step.stages) and pruning is not None and pruning.is_adaptive
        self._awaits_report = self._plan.follows_blocks or drops_more
        self._waits_since = iteration
        number, block, step_in_block, stop = step.index
        index = StepIndex(number + 1, block, step_in_block + 1, stop)
        self._step = self._plan.at(index, step.num_visual_after)
        self._full_rows_left = None
        return step.num_visual - self._step.num_visual

    def report(self, report: StepReport) -> int:
        """The output of a step is back.

        Returns:
            The visual tokens that it dropped beyond what :meth:`dispatch` knew.
        """
        self._num_done += 1
        before = self._step
        index, num_visual = before.index, before.num_visual
        if report.block is not None:
            self._awaits_report = False
            is_same = report.block == index.block
            step_in_block = index.step_in_block if is_same else 0
            index = StepIndex(index.step, report.block, step_in_block, report.stop)
        pruning = self._plan.params.pruning
        if report.pruned is not None and pruning is not None and pruning.is_adaptive:
            self._awaits_report = False
            num_visual = report.pruned.num_visual
        if (index, num_visual) != (before.index, before.num_visual):
            self._step = self._plan.at(index, num_visual)
            self._full_rows_left = None
        return before.num_visual - num_visual

    def count_returned(self, num_kv_blocks: int) -> None:
        """Count KV blocks that pruning freed."""
        self._num_kv_blocks_returned += num_kv_blocks

    def tokens_per_step(self, num_tokens: int) -> float:
        """Answer tokens per denoising step, if the answer has ``num_tokens``."""
        return num_tokens / max(self._num_done, 1)

    def figures(self, num_tokens: int) -> dict[str, Any]:
        """What the client learns of its request, as ``kv_transfer_params``."""
        return {
            REPORT_KEY: {
                "denoising_steps": self._num_done,
                "tokens_per_step": round(self.tokens_per_step(num_tokens), 3),
                "visual_tokens": self._plan.num_visual,
                "visual_tokens_kept": self._step.num_visual,
                "kv_blocks_returned": self._num_kv_blocks_returned,
            }
        }
