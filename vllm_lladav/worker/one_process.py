# SPDX-License-Identifier: Apache-2.0
"""The one worker of a CPU, in the process of the engine core.

vLLM gives every worker of a CPU a process of its own, whose threads its environment
binds to cores. One worker needs none: it starts without importing everything once more
(seven seconds on a small machine), keeps no second copy of it in memory, and steps and
their outputs pass no shared memory between two processes of which one always waits.
"""

import os
import threading

import torch
from vllm.utils.ompmultiprocessing import OMPProcessManager
from vllm.v1.executor.uniproc_executor import UniProcExecutor


class OneProcess(UniProcExecutor):
    """vLLM's executor of one process, with its threads where vLLM would bind a
    worker's: ``VLLM_CPU_OMP_THREADS_BIND``, ``VLLM_CPU_NUM_OF_RESERVED_CPU``."""

    def _init_executor(self) -> None:
        (cpus,) = OMPProcessManager(self.vllm_config).cpu_lists or ([],)
        if cpus:
            bind_threads(cpus)
        super()._init_executor()


def bind_threads(cpus: list[int]) -> None:
    """Let torch compute with a thread on each of ``cpus``: this one on the first.

    Threads that are there already, and threads that they start, are left as they are.
    """
    before = set(_threads())
    torch.set_num_threads(len(cpus))
    # OpenMP makes its threads when the first of their loops begins.
    torch.ones(1 << 20).exp_()
    helpers = sorted(_threads() - before)
    me = threading.get_native_id()
    for thread, cpu in zip([me, *helpers], cpus, strict=False):
        os.sched_setaffinity(thread, {cpu})


def _threads() -> set[int]:
    """Of this process, as the system numbers them."""
    return {int(name) for name in os.listdir("/proc/self/task")}
