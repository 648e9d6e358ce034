# SPDX-License-Identifier: Apache-2.0
"""How far a running request is, as the scheduler knows it."""

from dataclasses import dataclass
from typing import Any

from vllm_lladav.denoising.plan import Span, StepIndex, StepPlan

REPORT_KEY = "lladav"
"""Where in ``kv_transfer_params`` of a response the request's figures are."""


@dataclass
class Progress:
    """How far a request is in its plan.

    Attributes:
        num_dispatched: steps so far.
        block: of the canvas, of the next step.
        step_in_block: of the next step.
        stop: canvas position at which the answer ends, as far as it matters.
        num_done: steps whose output is back.
        num_visual: visual tokens that the next step starts with.
        num_blocks_returned: KV blocks freed by pruning.
        awaits_report: what the next step computes is known only when the output
            of the last one is back.
        waits_since: the scheduler's iteration in which it last ran, or came.
    """

    plan: StepPlan
    num_dispatched: int
    num_visual: int
    block: int = 0
    step_in_block: int = 0
    stop: int | None = None
    num_done: int = 0
    num_blocks_returned: int = 0
    awaits_report: bool = False
    waits_since: int = 0

    @classmethod
    def start(cls, plan: StepPlan, iteration: int) -> "Progress":
        return cls(
            plan,
            num_dispatched=0,
            num_visual=plan.num_visual,
            waits_since=iteration,
        )

    def num_held_slots(self, block_size: int) -> int:
        """KV slots up to the last one that the request uses."""
        return self.plan.num_held_slots(self.num_visual, block_size)

    @property
    def num_tokens(self) -> int:
        """Tokens that the next step computes, of all sequences."""
        return self.plan.params.num_sequences * self.computed.length

    @property
    def computed(self) -> Span:
        """Positions that the next step computes."""
        return self.plan.computed(self._index, self.num_visual)

    @property
    def is_full(self) -> bool:
        """Whether the next step computes everything."""
        return self.plan.is_full(self._index)

    @property
    def _index(self) -> StepIndex:
        return StepIndex(self.num_dispatched, self.block, self.step_in_block, self.stop)

    def follow(self, block: int, stop: int | None) -> None:
        """The worker says which block the next step works on, and where the answer
        ends."""
        self.awaits_report = False
        self.stop = stop
        if block != self.block:
            self.block, self.step_in_block = block, 0

    @property
    def exhausted(self) -> bool:
        return self.num_dispatched >= self.plan.num_steps

    def tokens_per_step(self, num_tokens: int) -> float:
        """Of a request whose answer has ``num_tokens``."""
        return num_tokens / max(self.num_done, 1)

    def report(self, num_tokens: int) -> dict[str, Any]:
        """What the client learns of its request, as ``kv_transfer_params``."""
        return {
            REPORT_KEY: {
                "denoising_steps": self.num_done,
                "tokens_per_step": round(self.tokens_per_step(num_tokens), 3),
                "visual_tokens": self.plan.num_visual,
                "visual_tokens_kept": self.num_visual,
                "kv_blocks_returned": self.num_blocks_returned,
            }
        }
