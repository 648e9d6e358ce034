# SPDX-License-Identifier: Apache-2.0
"""What ``--dtype auto`` means on a CPU."""

import platform

import torch


def computes_bfloat16() -> bool:
    """Whether this CPU has matrix products in bfloat16.

    x86 has them with AMX or AVX512-BF16 only; without, every product is converted
    (``benchmarks/README.md`` has what that costs). Other CPUs are left to vLLM.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
