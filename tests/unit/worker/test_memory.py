# SPDX-License-Identifier: Apache-2.0
"""Room for prompt embeddings in vLLM's memory profile."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_lladav.worker.memory import Reserve, prompt_embeds_bytes

CPU = torch.device("cpu")
GB = 10**9


def config(max_num_seqs: int) -> Any:
    """The 8B model's."""
    return SimpleNamespace(
        model_config=SimpleNamespace(
            dtype=torch.bfloat16, max_model_len=4096, get_hidden_size=lambda: 4096
        ),
        scheduler_config=SimpleNamespace(max_num_seqs=max_num_seqs),
        cache_config=SimpleNamespace(gpu_memory_utilization=0.9),
    )


@pytest.mark.parametrize(
    ("num_ranks", "max_num_seqs", "num_tokens"),
    # 512 KiB of K and V a token: 137,329 fit into 72 GB, twice as many into 144.
    [(1, 256, 137_329), (2, 256, 274_658), (1, 8, 8 * 4096)],
)
def test_no_more_than_kv_slots(num_ranks: int, max_num_seqs: int, num_tokens: int):
    attention = SimpleNamespace(
        num_kv_heads=32 // num_ranks,
        head_size=128,
        kv_cache_torch_dtype=torch.bfloat16,
    )
    attentions: Any = [attention] * 32
    found = prompt_embeds_bytes(config(max_num_seqs), attentions, 80 * GB)
    assert found == num_tokens * 4096 * 2


def test_held_once_and_released_for_good():
    reserve = Reserve(1000, CPU)
    assert reserve._held is None
    reserve.hold()
    held = reserve._held
    assert held is not None and held.nbytes == 1000
    reserve.hold()
    assert reserve._held is held
    reserve.release()
    reserve.hold()
    assert reserve._held is None
