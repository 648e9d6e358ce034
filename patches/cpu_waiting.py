# SPDX-License-Identifier: Apache-2.0
"""Let processes that wait for a message sleep where every core computes.

Why: the engine core spins for up to a second while it waits for its workers. If
no core is set aside for it (``VLLM_CPU_NUM_OF_RESERVED_CPU=0``), it spins on one
that computes: steps become slower, and the answer is noticed late, when the
spinning process gets its next time slice.
How: makes a spinning time of 0 the default of vLLM's ``SpinCondition``, which
then waits on the socket that wakes idle processes anyway.
Affects: all models, on CPUs without a reserved core only.
Can go: when vLLM does so itself.
"""


def apply() -> None:
    from vllm import envs
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
    from vllm.platforms import current_platform

    if not current_platform.is_cpu() or envs.VLLM_CPU_NUM_OF_RESERVED_CPU != 0:
        return
    SpinCondition.__init__.__defaults__ = (0,)
