# SPDX-License-Identifier: Apache-2.0
"""Threads of a process that computes, as the system sees them."""

import os
import subprocess
import sys

import pytest
from vllm.platforms import current_platform

if not current_platform.is_cpu():
    pytest.skip("for vLLM's CPU build", allow_module_level=True)

CPUS = sorted(os.sched_getaffinity(0))

# In a process of its own: threads of this one would stay bound.
BIND = """
import os, sys, threading, torch
from vllm_lladav.worker.one_process import bind_threads
sleeping = threading.Thread(target=threading.Event().wait, daemon=True)
sleeping.start()
cpus = [int(cpu) for cpu in sys.argv[1:]]
bind_threads(cpus)
where = [os.sched_getaffinity(int(t)) for t in sorted(os.listdir("/proc/self/task"))]
print(torch.get_num_threads(), os.sched_getaffinity(0))
print(os.sched_getaffinity(sleeping.native_id))
print(sorted(cpu for cpus in where if len(cpus) == 1 for cpu in cpus))
"""


@pytest.mark.skipif(len(CPUS) < 2, reason="a bound thread cannot be told on one core")
def test_threads_are_bound_and_others_are_not():
    cpus = CPUS[-2:]
    arguments = [sys.executable, "-c", BIND, *map(str, cpus)]
    found = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines() == [
        f"2 {{{cpus[0]}}}",
        str(set(CPUS)),
        str(cpus),
    ]
