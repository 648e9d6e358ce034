# SPDX-License-Identifier: Apache-2.0
"""Memory of running requests outside of the KV blocks, as vLLM's profile sees it.

vLLM runs the model once without requests and gives what is left to KV blocks. The
prompt embeddings that requests keep, 12 MB with an image of the 8B model, would then
find no memory.
"""

from collections.abc import Sequence

import torch
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention


def prompt_embeds_bytes(
    vllm_config: VllmConfig, attentions: Sequence[Attention], device_bytes: int
) -> int:
    """The most that prompt embeddings can take: requests that run have KV slots for
    their prompts.

    Args:
        attentions: of all layers, with the heads of this rank.
        device_bytes: memory of the device.
    """
    model, scheduler = vllm_config.model_config, vllm_config.scheduler_config
    assert isinstance(model.dtype, torch.dtype), model.dtype
    of_token = sum(
        2 * a.num_kv_heads * a.head_size * a.kv_cache_torch_dtype.itemsize
        for a in attentions
    )
    kv_bytes = vllm_config.cache_config.gpu_memory_utilization * device_bytes
    num_tokens = min(
        int(kv_bytes / of_token), scheduler.max_num_seqs * model.max_model_len
    )
    return num_tokens * model.get_hidden_size() * model.dtype.itemsize


class Reserve:
    """Holds memory from the start of the profile to its end.

    Args:
        num_bytes: how much.
    """

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self._num_bytes = num_bytes
        self._device = device
        self._held: torch.Tensor | None = None

    def hold(self) -> None:
        """Unless it is held, or was released."""
        if self._held is None and self._num_bytes:
            self._held = torch.empty(
                self._num_bytes, dtype=torch.uint8, device=self._device
            )

    def release(self) -> None:
        """For good: requests need the room now."""
        self._held, self._num_bytes = None, 0
