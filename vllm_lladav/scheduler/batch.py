# SPDX-License-Identifier: Apache-2.0
"""One iteration while it is put together."""

from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.request import Request


class Batch:
    """What one iteration has scheduled so far, and what budget is left.

    Attributes:
        full_step_tokens: most tokens of full steps together, if there are several;
            0 is no limit.
        reserved: tokens of running requests that are still to be scheduled, by id.
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

    @property
    def unreserved_tokens(self) -> int:
        return self.token_budget - sum(self.reserved.values())

    def allows_full_step(self, num_tokens: int) -> bool:
        if not self.full_step_tokens or not self._full_tokens:
            return True
        return sum(self._full_tokens.values()) + num_tokens <= self.full_step_tokens

    def take(
        self, request: Request, num_tokens: int, blocks: KVCacheBlocks, is_full: bool
    ) -> None:
        self.num_tokens[request.request_id] = num_tokens
        self.blocks[request.request_id] = blocks
        self.token_budget -= num_tokens
        if is_full:
            self._full_tokens[request.request_id] = num_tokens

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
