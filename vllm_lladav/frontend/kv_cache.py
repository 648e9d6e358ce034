# SPDX-License-Identifier: Apache-2.0
"""Which ``--kv-cache-dtype`` can be attended to.

vLLM does not say so itself on a CPU, where it reads and writes any other cache as if it
were the model's, and on a GPU only when the model is loaded or first run.
"""

from typing import NamedTuple

import torch

FP8 = ("fp8", "fp8_e4m3")
CPU_FP8 = (*FP8, "fp8_e5m2")
INT8_PER_TOKEN = "int8_per_token_head"
FP8_PER_TOKEN = "fp8_per_token_head"


class KVCaches(NamedTuple):
    """
    Attributes:
        allowed: values of the flag.
        where: these and no others.
    """

    allowed: tuple[str, ...]
    where: str


def kv_caches(dtype: torch.dtype, head_size: int) -> KVCaches:
    """On this machine. ``dtype``: of the model."""
    from vllm.platforms import current_platform

    name = str(dtype).removeprefix("torch.")
    # There is no float32 among vLLM's values: it is what "auto" means then.
    same = ("auto",) if dtype == torch.float32 else ("auto", name)
    if current_platform.is_cpu():
        if not (torch.cpu._is_avx512_supported() or torch.cpu._is_amx_tile_supported()):
            return KVCaches(same, "on a CPU without AVX-512")
        if head_size % 32:
            return KVCaches(same, f"on a CPU with a head size of {head_size}")
        return KVCaches((*same, *CPU_FP8), f"on a CPU with --dtype {name}")
    if not current_platform.has_device_capability(89):
        return KVCaches((*same, INT8_PER_TOKEN), "on a GPU without FP8")
    per_token = (FP8_PER_TOKEN, INT8_PER_TOKEN)
    if dtype == torch.float16:
        # What FlashAttention 3 computes from FP8 is bfloat16.
        return KVCaches((*same, *per_token), f"on a GPU with --dtype {name}")
    return KVCaches((*same, *FP8, *per_token), f"on a GPU with --dtype {name}")


def refusal(kv_cache_dtype: str, dtype: torch.dtype, head_size: int) -> str | None:
    """What is wrong with ``--kv-cache-dtype``, and what is allowed; None if nothing."""
    allowed, where = kv_caches(dtype, head_size)
    if kv_cache_dtype in allowed:
        return None
    return (
        f"--kv-cache-dtype {kv_cache_dtype} {where} (allowed there: "
        f"{', '.join(allowed)})"
    )
