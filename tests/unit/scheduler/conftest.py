# SPDX-License-Identifier: Apache-2.0
"""vLLM's own configuration of an engine, without the engine."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vllm.config import VllmConfig


@pytest.fixture(scope="package")
def config(tiny_checkpoint: Path) -> "VllmConfig":
    """Read by every scheduler that a test makes."""
    from vllm import EngineArgs

    from vllm_lladav.plugin import register

    register()
    return EngineArgs(
        model=str(tiny_checkpoint),
        dtype="float32",
        kv_cache_memory_bytes=1 << 28,
        max_model_len=512,
    ).create_engine_config()
