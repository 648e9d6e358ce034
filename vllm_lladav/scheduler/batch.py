# SPDX-License-Identifier: Apache-2.0
"""One iteration while it is put together."""

from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.request import Request

from vllm_lladav.denoising.plan import Step


class Batch:
    """What one iteration has scheduled so far, and what budget is left.

    Attributes:
        reserved: tokens of running requests that are still to be scheduled, by id.
        running: those that are scheduled.
        new: requests that are admitted.

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
        self.reserved: dict[str, int] = {}
        self.running: list[Request] = []
        self.new: list[Request] = []
        self.num_tokens: dict[str, int] = {}
        self.blocks: dict[str, KVCacheBlocks] = {}
        self.encoder_inputs: dict[str, list[int]] = {}
        self._full_tokens: dict[str, int] = {}

    def allows(self, step: Step) -> bool:
        """Whether tokens of the step are within both limits; what is reserved for
        others does not count."""
        if step.num_rows > self.token_budget:
            return False
        return not step.is_full or self.allows_full_step(step)

    def allows_full_step(self, step: Step) -> bool:
        if not self.full_step_tokens or not self._full_tokens:
            return True
        return sum(self._full_tokens.values()) + step.num_rows <= self.full_step_tokens

    def has_room(self, step: Step) -> bool:
        """Whether the tokens of a new request's step are left by all others."""
        return step.num_rows <= self.token_budget - sum(self.reserved.values())

    def take(self, request: Request, step: Step, blocks: KVCacheBlocks) -> None:
        self.num_tokens[request.request_id] = step.num_rows
        self.blocks[request.request_id] = blocks
        self.token_budget -= step.num_rows
        if step.is_full:
            self._full_tokens[request.request_id] = step.num_rows

    def drop(self, request: Request) -> None:
        """Take back what :meth:`take` did for a running request.

        Only running requests are preempted: those admitted in this iteration
        precede the one that needs room in the queue's order.
        """
        self.reserved.pop(request.request_id, None)
        if request in self.running:
            self.running.remove(request)
            del self.blocks[request.request_id]
            self.token_budget += self.num_tokens.pop(request.request_id)
            self._full_tokens.pop(request.request_id, None)
