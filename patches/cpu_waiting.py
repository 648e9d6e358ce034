# SPDX-License-Identifier: Apache-2.0
"""Let processes that wait for a message sleep where every core computes.

Why: the engine core spins for up to a second while it waits for its workers. If
no core is set aside for it (``VLLM_CPU_NUM_OF_RESERVED_CPU=0``), it spins on one
that computes: steps become slower, and the answer is noticed late, when the
spinning process gets its next time slice.
How: makes a spinning time of 0 the default of vLLM's ``SpinCondition``, which
then waits on the socket that wakes idle processes anyway; and lets ``wait`` return
after a while. Its callers look at the message buffer and wait again, so that a
wake-up that the socket drops (it keeps one, and that one may be old) costs
milliseconds instead of the seconds that vLLM waits.
Affects: all models, on CPUs without a reserved core only.
Can go: when vLLM does so itself.
"""

import time
from typing import Any

from vllm_lladav.patches.wrapping import wrap

RECENTLY_S = 1.0
"""Since the last message: another one is likely to come."""
WAIT_MS, IDLE_WAIT_MS = 2, 100


def apply() -> None:
    from vllm import envs
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
    from vllm.platforms import current_platform

    if not current_platform.is_cpu() or envs.VLLM_CPU_NUM_OF_RESERVED_CPU != 0:
        return
    SpinCondition.__init__.__defaults__ = (0,)

    @wrap(SpinCondition, "wait")
    def wait_a_while(
        wait: Any, self: SpinCondition, timeout_ms: int | None = None
    ) -> None:
        is_recent = time.monotonic() < self.last_read + RECENTLY_S
        limit = WAIT_MS if is_recent else IDLE_WAIT_MS
        wait(self, limit if timeout_ms is None else min(limit, timeout_ms))
