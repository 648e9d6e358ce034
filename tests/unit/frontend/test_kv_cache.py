# SPDX-License-Identifier: Apache-2.0
"""Types of K/V are refused at start where nothing can attend to them."""

from typing import Any, get_args

import pytest
import torch
from vllm.config.cache import CacheDType
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform

from vllm_lladav.frontend.kv_cache import refusal

FLOAT32, FLOAT16, BFLOAT16 = torch.float32, torch.float16, torch.bfloat16


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what vLLM runs on: a CPU, with or without AVX-512, or a GPU."""

    def become(
        capability: int | None = None, has_avx512: bool = True, has_amx: bool = False
    ) -> None:
        platform: Any = type(current_platform)
        monkeypatch.setattr(platform, "is_cpu", lambda self: capability is None)
        monkeypatch.setattr(
            platform,
            "has_device_capability",
            classmethod(lambda cls, least: (capability or 0) >= least),
        )
        monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: has_avx512)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_amx)

    return become


@pytest.mark.parametrize(
    ("device", "dtype", "head_size", "allowed"),
    [
        ({}, FLOAT32, 128, "auto fp8 fp8_e4m3 fp8_e5m2"),
        ({}, BFLOAT16, 128, "auto bfloat16 fp8 fp8_e4m3 fp8_e5m2"),
        ({}, FLOAT16, 128, "auto float16 fp8 fp8_e4m3 fp8_e5m2"),
        ({}, FLOAT32, 80, "auto"),
        ({"has_avx512": False}, BFLOAT16, 128, "auto bfloat16"),
        (
            {"has_avx512": False, "has_amx": True},
            BFLOAT16,
            128,
            "auto bfloat16 fp8 fp8_e4m3 fp8_e5m2",
        ),
        (
            {"capability": 90},
            BFLOAT16,
            128,
            "auto bfloat16 fp8 fp8_e4m3 fp8_per_token_head int8_per_token_head",
        ),
        (
            {"capability": 90},
            FLOAT16,
            128,
            "auto float16 fp8_per_token_head int8_per_token_head",
        ),
        (
            {"capability": 90},
            FLOAT32,
            128,
            "auto fp8 fp8_e4m3 fp8_per_token_head int8_per_token_head",
        ),
        ({"capability": 80}, BFLOAT16, 128, "auto bfloat16 int8_per_token_head"),
    ],
    ids=str,
)
def test_allowed(
    machine: Any,
    device: dict[str, Any],
    dtype: torch.dtype,
    head_size: int,
    allowed: str,
):
    machine(**device)
    found = [
        value
        for value in get_args(CacheDType)
        if refusal(value, dtype, head_size) is None
    ]
    assert sorted(found) == sorted(allowed.split())


def test_message(machine: Any):
    machine(capability=90)
    assert refusal("fp8", FLOAT16, 128) == (
        "--kv-cache-dtype fp8 on a GPU with --dtype float16 (allowed there: auto, "
        "float16, fp8_per_token_head, int8_per_token_head)"
    )


@pytest.mark.skipif(not current_platform.is_cpu(), reason="about CPUs")
def test_the_pool_of_a_cpu_has_as_many_tokens(machine: Any):
    """A narrower cache takes less memory."""
    machine()
    sizes = [
        EngineArgs("lladav-tiny", dtype="float32", kv_cache_dtype=name)
        .create_engine_config()
        .cache_config.kv_cache_memory_bytes
        for name in ("auto", "fp8")
    ]
    assert sizes[0] == 4 * sizes[1]
