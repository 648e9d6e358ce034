# SPDX-License-Identifier: Apache-2.0
"""One iteration while it is put together."""

from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.request import Request

from vllm_lladav.denoising.plan import Step


class Batch:
    """What one iteration has scheduled so far, and what budget is left.

    Attributes:
        running: those that are scheduled.
        new: requests that are admitted.
        preempted: ids of those that made room for others.
        full_rows: tokens of the full steps, by request.
        is_closed: whether nobody else is admitted.

    Args:
        token_budget: most tokens of all steps together.
        encoder_budget: most visual tokens that are encoded.
        full_step_tokens: most tokens of full steps together, if there are several;
            0 is no limit.
    """

    def __init__(
        self, token_budget: int, encoder_budget: int, full_step_tokens: int
    ) -> None:
        self.token_budget = token_budget
        self.encoder_budget = encoder_budget
        self.full_step_tokens = full_step_tokens
        self.running: list[Request] = []
        self.new: list[Request] = []
        self.preempted: set[str] = set()
        self.is_closed = False
        self.num_tokens: dict[str, int] = {}
        self.full_rows: dict[str, int] = {}
        self.blocks: dict[str, KVCacheBlocks] = {}
        self.encoder_inputs: dict[str, list[int]] = {}

    @property
    def cached_rows(self) -> int:
        """Tokens of the cached steps."""
        return sum(self.num_tokens.values()) - sum(self.full_rows.values())

    def allows(self, step: Step) -> bool:
        """Whether tokens of the step are within both limits."""
        if step.num_rows > self.token_budget:
            return False
        if not step.is_full or not self.full_step_tokens or not self.full_rows:
            return True
        return sum(self.full_rows.values()) + step.num_rows <= self.full_step_tokens

    def take(self, request: Request, step: Step, blocks: KVCacheBlocks) -> None:
        self.num_tokens[request.request_id] = step.num_rows
        self.blocks[request.request_id] = blocks
        self.token_budget -= step.num_rows
        if step.is_full:
            self.full_rows[request.request_id] = step.num_rows

    def drop(self, request: Request) -> None:
        """Take back what :meth:`take` did for a running request, if it did.

        Only running requests are preempted: those admitted in this iteration
        precede the one that needs room in the queue's order.
        """
        self.preempted.add(request.request_id)
        if request in self.running:
            self.running.remove(request)
            del self.blocks[request.request_id]
            self.token_budget += self.num_tokens.pop(request.request_id)
            self.full_rows.pop(request.request_id, None)
