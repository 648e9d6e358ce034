# SPDX-License-Identifier: Apache-2.0
"""Which waiting requests can begin, and how they do.

A request is admitted with its first step, when all its KV blocks are there; it never
waits for blocks again. Blocks and places are handed out in the order of vLLM's queue
(arrival, or priority): the first request that does not fit holds back those behind it,
which is what keeps large requests from starving. Within what fits together, turns say
who begins first.
"""

import time
from itertools import islice
from typing import NamedTuple

from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.engine import EngineCoreEventType
from vllm.v1.request import Request, RequestStatus

from vllm_lladav.denoising.plan import Step
from vllm_lladav.scheduler.batch import Batch
from vllm_lladav.scheduler.blocks import num_blocks
from vllm_lladav.scheduler.output import DenoisingOutput

MOST_LOOKED_AT = 32
"""Waiting requests that may go before others, from the head of the queue. Their order
matters little where more wait than that, and looking at them takes time."""


class Room(NamedTuple):
    """What requests hold while they run."""

    blocks: int
    sequences: int

    @property
    def is_enough(self) -> bool:
        return min(self) >= 0

    def without(self, needs: "Room") -> "Room":
        return Room(self.blocks - needs.blocks, self.sequences - needs.sequences)


class DenoisingAdmission(DenoisingOutput):
    """What becomes of the queue of waiting requests."""

    def _step(self, request: Request) -> Step:
        """The request's next step."""
        return self._progress[request.request_id].step

    def _admissible(self) -> list[Request]:
        """Waiting requests that can be admitted, in any order: as many from the head of
        the queue on as there is room for together. The first one may take the room of
        less important ones."""
        found: list[Request] = []
        if self._pause_state != PauseState.UNPAUSED or not self.waiting:
            return found
        room = self._room()
        for request in islice(self.waiting, MOST_LOOKED_AT):
            room = room.without(self._needs(request))
            can_take_room = not found and self._victim(request) is not None
            if request.num_stale_output_tokens or not (room.is_enough or can_take_room):
                break
            found.append(request)
        return found

    def _admit(self, request: Request, step: Step, batch: Batch) -> None:
        """If there is room for the whole first step."""
        needs = self._needs(request)
        while not self._room().without(needs).is_enough:
            if not self._make_room(request, batch):
                return
        blocks = None if batch.is_closed else self._allocate(request, step, batch)
        if blocks is None:
            # The encoder is busy. Those that ask for less of it wait, too.
            batch.is_closed = True
            return
        if request is self.waiting.peek_request():
            self.waiting.pop_request()
        else:
            self.waiting.remove_request(request)
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

    def _room(self) -> Room:
        """For requests to admit."""
        manager = self.kv_cache_manager
        kept_free = manager.watermark_blocks if self.running else 0
        num_sequences = sum(
            self._step(request).plan.params.num_sequences for request in self.running
        )
        return Room(
            manager.block_pool.get_num_free_blocks() - kept_free,
            self.max_num_active_reqs - num_sequences,
        )

    def _needs(self, request: Request) -> Room:
        step = self._step(request)
        num_slots = step.num_held_slots(self.block_size)
        return Room(
            num_blocks(self.kv_cache_manager, num_slots),
            step.plan.params.num_sequences,
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
        victim = self._victim(request)
        if victim is None:
            return False
        self.running.remove(victim)
        batch.drop(victim)
        self._preempt_request(victim, time.monotonic())
        return True

    def _victim(self, request: Request) -> Request | None:
        """The least important running request, if it is less important."""
        if self.policy != SchedulingPolicy.PRIORITY or not self.running:
            return None
        victim = max(self.running, key=lambda r: (r.priority, r.arrival_time))
        return victim if victim.priority > request.priority else None

    def _take(self, request: Request, blocks: KVCacheBlocks, batch: Batch) -> None:
        step = self._step(request)
        request.num_computed_tokens = step.computed.first
        batch.take(request, step, blocks)
