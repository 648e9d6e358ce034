# SPDX-License-Identifier: Apache-2.0
"""What vLLM takes a Hopper GPU by, on a CPU. To be called before vLLM is imported.

    python -m tests.interpreter.hopper MODULE

runs a module as a script where vLLM uses Triton.
"""

import runpy
import sys
from types import SimpleNamespace
from typing import Any


def interpret_triton() -> None:
    """Let vLLM run its Triton kernels, attention included, on tensors of this CPU.

    The process needs ``TRITON_INTERPRET=1``.
    """
    use_triton()

    import torch
    from vllm.platforms import current_platform
    from vllm.platforms.interface import DeviceCapability
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    def triton_attention(*args: Any, **kwargs: Any) -> str:
        return AttentionBackendEnum.TRITON_ATTN.get_path()

    from vllm.v1.attention.backends.triton_attn import TritonAttentionImpl

    current_platform.get_attn_backend_cls = triton_attention
    # Where K/V are FP8, a GPU rounds queries to it, too.
    TritonAttentionImpl.supports_quant_query_input = property(
        lambda self: True, lambda self, value: None
    )
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    platform: Any = type(current_platform)
    platform.get_device_capability = classmethod(
        lambda cls, device_id=0: DeviceCapability(9, 0)
    )


def use_triton() -> None:
    """Let vLLM use the Triton that is installed."""
    from triton.backends import backends

    # On a CPU, vLLM looks for the backend of the fork that compiles for CPUs.
    driver = SimpleNamespace(is_active=lambda: True)
    compiler = SimpleNamespace(supports_target=lambda target: False)
    found: Any = SimpleNamespace(driver=driver, compiler=compiler)
    backends["cpu"] = found


def multiply_bfloat16() -> None:
    """Let ``tl.dot`` of Triton's interpreter take bfloat16, whose bits it multiplies as
    if they were integers."""
    from triton.language import bfloat16, float32
    from triton.runtime.interpreter import InterpreterBuilder

    multiply = InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        a, b = (
            self.create_fp_ext(x, float32) if x.dtype.scalar == bfloat16 else x
            for x in (a, b)
        )
        return multiply(self, a, b, *others)

    InterpreterBuilder.create_dot = create_dot


def resolve_as_on_gpu() -> None:
    """Let vLLM resolve its configuration as for a GPU. Nothing can run then."""
    use_triton()

    from vllm.platforms import current_platform

    platform: Any = type(current_platform)
    platform.is_cpu = lambda self: False
    platform.support_static_graph_mode = classmethod(lambda cls: True)
    platform.check_and_update_config = classmethod(lambda cls, config: None)


if __name__ == "__main__":
    use_triton()
    runpy.run_module(sys.argv[1], run_name="__main__")
