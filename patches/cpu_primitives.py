# SPDX-License-Identifier: Apache-2.0
"""Fewer matrix kernels are kept on a CPU.

Why: oneDNN compiles a kernel for every shape of a product and keeps the latest 1,024,
of half a MB each. The batches of a server under load have ever other numbers of rows,
so the worker grew by 0.9 GB (with what its heap lost to fragmentation), and found few
of these kernels again: a request alone needs a dozen, and vLLM's linear layers hold
their latest 32 themselves.
How: a smaller default of ``ONEDNN_PRIMITIVE_CACHE_CAPACITY``, which oneDNN reads when
it is first used. Who has set it is left alone.
Affects: all models, on CPUs only.
Can go: when oneDNN or vLLM compiles kernels for any number of rows.
"""

import os

CAPACITY = 128
NAMES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY")
"""The second is the older name, which oneDNN reads, too."""


def apply() -> None:
    from vllm.platforms import current_platform

    if current_platform.is_cpu() and not any(name in os.environ for name in NAMES):
        os.environ[NAMES[0]] = str(CAPACITY)
