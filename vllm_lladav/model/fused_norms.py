# SPDX-License-Identifier: Apache-2.0
"""Norms as one kernel each, where no compiler fuses them."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from vllm import ir

KERNELS = "vllm_c"
"""vLLM's name of its own compiled kernels."""


@contextmanager
def fused_norms() -> Iterator[None]:
    """For layers that run eagerly on a GPU.

    vLLM leaves norms to the compiler there, as some ten operations each that read and
    write all of the hidden states (``Platform.get_default_ir_op_priority``). What is
    compiled keeps them: this changes calls, not what was captured. On a CPU, which has
    no such kernels, it changes nothing.
    """
    with ExitStack() as stack:
        for op in (ir.ops.rms_norm, ir.ops.fused_add_rms_norm):
            if KERNELS in op.supported_providers():
                stack.enter_context(op.set_priority([KERNELS, "native"]))
        yield
