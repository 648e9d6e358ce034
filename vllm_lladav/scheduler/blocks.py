# SPDX-License-Identifier: Apache-2.0
"""KV blocks of a request whose length is known, and shrinks."""

from vllm.v1.core.kv_cache_manager import KVCacheManager


def num_blocks(manager: KVCacheManager, num_tokens: int) -> int:
    """How many KV blocks ``num_tokens`` of a request take."""
    return sum(
        -(-num_tokens // single_type.block_size)
        for single_type in manager.coordinator.single_type_managers
    )


def shrink(manager: KVCacheManager, request_id: str, num_tokens: int) -> int:
    """Free the blocks that a request needs no longer once it holds ``num_tokens``.

    vLLM has no call for it: blocks are freed when a request ends. Without prefix
    caching (which denoising rules out) a block has one owner and no content worth
    keeping, so it can be handed on at once: a new owner's first write comes in a
    later step, after the reads of the step that is under way.

    Returns:
        The number of blocks freed.
    """
    num_freed = 0
    for single_type in manager.coordinator.single_type_managers:
        blocks = single_type.req_to_blocks[request_id]
        num_needed = -(-num_tokens // single_type.block_size)
        tail = blocks[num_needed:]
        if not tail:
            continue
        del blocks[num_needed:]
        single_type.block_pool.free_blocks(reversed(tail))
        num_freed += len(tail)
    return num_freed
