# SPDX-License-Identifier: Apache-2.0
"""Model Runner V2 on a CPU without Triton.

Why: the denoising hooks exist in Model Runner V2 only, whose bookkeeping
kernels are written in Triton; there is no Triton for CPUs on the package index.
How: torch functions stand in for the kernels that a step reaches, through
vLLM's own ``register_kernels`` where they take tensors, and as two methods of
``BlockTables`` where they take raw pointers. That takes a moment, and is done where a
worker is.
Affects: nothing but Model Runner V2 on CPUs, which does not start without it.
Can go: when vLLM's CPU build brings these kernels or a Triton.
"""

from typing import Any

import torch

Tensor = torch.Tensor

PAD_SLOT_ID = -1

_INPUT_BATCH = "vllm.v1.worker.gpu.input_batch."


def apply() -> None:
    from vllm.platforms import current_platform
    from vllm.triton_utils import HAS_TRITON, triton

    if not current_platform.is_cpu() or HAS_TRITON:
        return
    from vllm.triton_utils.dispatcher import register_kernels
    from vllm.v1.worker.gpu.block_table import BlockTables

    if BlockTables.gather_block_tables is gather_block_tables:
        return
    triton.next_power_of_2 = lambda n: 1 << (n - 1).bit_length()
    register_kernels(
        {
            _INPUT_BATCH + "_prepare_pos_seq_lens_kernel": prepare_pos_seq_lens,
            _INPUT_BATCH + "_prepare_prefill_inputs_kernel": prepare_prefill_inputs,
            _INPUT_BATCH
            + "_combine_sampled_and_draft_tokens_kernel": combine_sampled_and_draft,
            _INPUT_BATCH + "_post_update_kernel": post_update,
            "vllm.v1.worker.gpu.buffer_utils._apply_write_kernel": apply_write,
        }
    )
    BlockTables.gather_block_tables = gather_block_tables
    BlockTables.compute_slot_mappings = compute_slot_mappings


def prepare_pos_seq_lens(
    pos: Tensor,
    seq_lens: Tensor,
    idx_mapping: Tensor,
    query_start_loc: Tensor,
    num_computed_tokens: Tensor,
    max_num_reqs: int,
    BLOCK_SIZE: int,
) -> None:
    num_reqs = len(idx_mapping)
    starts = query_start_loc[: num_reqs + 1].long()
    lens = starts.diff()
    computed = num_computed_tokens[idx_mapping].long()
    seq_lens[:num_reqs] = computed + lens
    seq_lens[num_reqs:max_num_reqs] = 0
    total = int(starts[-1])
    offsets = torch.repeat_interleave(computed - starts[:-1], lens, output_size=total)
    torch.add(torch.arange(total), offsets, out=pos[:total])


def prepare_prefill_inputs(
    input_ids: Tensor,
    next_prefill_tokens: Tensor,
    next_prefill_tokens_stride: int,
    num_lookahead: int,
    idx_mapping: Tensor,
    query_start_loc: Tensor,
    all_token_ids: Tensor,
    all_token_ids_stride: int,
    prefill_lens: Tensor,
    num_computed_tokens: Tensor,
    *_: Any,
    **__: Any,
) -> None:
    starts = query_start_loc.tolist()
    for i, slot in enumerate(idx_mapping.tolist()):
        prefill_len = int(prefill_lens[slot])
        computed = int(num_computed_tokens[slot])
        if computed >= prefill_len:
            continue
        start, end = starts[i], starts[i + 1]
        count = min(end - start, all_token_ids.shape[1] - computed)
        input_ids[start : start + count] = all_token_ids[
            slot, computed : computed + count
        ]
        for ahead in range(num_lookahead):
            position = computed + end - start + ahead
            next_prefill_tokens[ahead, slot] = (
                all_token_ids[slot, position] if position < prefill_len else 0
            )


def combine_sampled_and_draft(
    input_ids: Tensor,
    idx_mapping: Tensor,
    last_sampled_tokens: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    prefill_len: Tensor,
    draft_tokens: Tensor,
    draft_tokens_stride: int,
    cu_num_logits: Tensor,
    logits_indices: Tensor,
    BLOCK_SIZE: int,
    NUM_NEW_SAMPLED_TOKENS: int = 1,
) -> None:
    num_reqs = len(idx_mapping)
    assert len(logits_indices) == num_reqs, "drafts are not supported"
    last_rows = query_start_loc[1 : num_reqs + 1] - 1
    logits_indices.copy_(last_rows)
    follows_prompt = seq_lens[:num_reqs] > prefill_len[idx_mapping]
    rows, slots = last_rows[follows_prompt].long(), idx_mapping[follows_prompt]
    input_ids[rows] = last_sampled_tokens[slots, 0].to(input_ids.dtype)


def post_update(
    idx_mapping: Tensor,
    num_computed_tokens: Tensor,
    last_sampled_tokens: Tensor,
    output_bin_counts: Tensor | None,
    output_bin_counts_stride: int,
    sampled_tokens: Tensor,
    sampled_tokens_stride: int,
    num_sampled: Tensor,
    num_rejected: Tensor,
    query_start_loc: Tensor | None,
    all_token_ids: Tensor,
    all_token_ids_stride: int,
    total_len: Tensor,
    num_warps: int,
) -> None:
    assert output_bin_counts is None, "penalties are not supported"
    valid = idx_mapping >= 0
    slots = idx_mapping[valid]
    computed_delta = -num_rejected[valid]
    if query_start_loc is not None:
        query_lens = query_start_loc[: len(idx_mapping) + 1].diff()
        computed_delta = computed_delta + query_lens[valid]
    num_computed_tokens[slots] += computed_delta.to(num_computed_tokens.dtype)
    emits = valid & (num_sampled > 0)
    slots, tokens = idx_mapping[emits], sampled_tokens[emits]
    counts = num_sampled[emits].to(torch.int64)
    lengths = total_len[slots]
    places = torch.arange(tokens.shape[1])
    rows, columns = (places < counts[:, None]).nonzero(as_tuple=True)
    all_token_ids[slots[rows], lengths[rows] + columns] = tokens[rows, columns].to(
        all_token_ids.dtype
    )
    last = tokens.gather(1, counts[:, None] - 1)[:, 0]
    last_sampled_tokens[slots, 0] = last.to(last_sampled_tokens.dtype)
    total_len[slots] = lengths + counts.to(total_len.dtype)


def apply_write(
    output: Tensor,
    output_stride: int,
    indices: Tensor,
    starts: Tensor,
    contents: Tensor,
    cu_lens: Tensor,
    group_ids: Tensor,
    BLOCK_SIZE: int,
    MULTI_GROUP: bool,
) -> None:
    assert not MULTI_GROUP, "one KV cache group only"
    rows = output.view(-1, 1) if output.dim() == 1 else output
    begin = 0
    for row, start, end in zip(
        indices.tolist(), starts.tolist(), cu_lens.tolist(), strict=True
    ):
        rows[row, start : start + end - begin] = contents[begin:end].to(rows.dtype)
        begin = end


def gather_block_tables(
    self: Any,
    idx_mapping: Tensor,
    num_reqs_padded: int,
    out: tuple[Tensor, ...] | None = None,
    out_ptrs: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """``BlockTables.gather_block_tables``: rows of the batch, padded with zeros."""
    tables = tuple(self.input_block_tables) if out is None else out
    num_reqs = len(idx_mapping)
    for group, table in enumerate(tables):
        widths = self.num_blocks.gpu[group][idx_mapping]
        width = int(widths.max()) if num_reqs else 0
        rows = self.block_tables[group].gpu[idx_mapping, :width]
        valid = torch.arange(width) < widths[:, None]
        table[:num_reqs, :width] = torch.where(valid, rows, table[:num_reqs, :width])
        table[num_reqs:num_reqs_padded] = 0
    return tuple(table[:num_reqs_padded] for table in tables)


def compute_slot_mappings(
    self: Any,
    idx_mapping: Tensor,
    query_start_loc: Tensor,
    positions: Tensor,
    num_tokens_padded: int,
    out: Tensor | None = None,
) -> Tensor:
    """``BlockTables.compute_slot_mappings``: ``[groups, tokens]``."""
    slot_mappings = self.slot_mappings if out is None else out
    starts = query_start_loc[: len(idx_mapping) + 1].long()
    total = int(starts[-1])
    rows = torch.repeat_interleave(idx_mapping, starts.diff(), output_size=total)
    used = positions[:total]
    for group, block_size in enumerate(self.block_sizes):
        blocks = self.block_tables[group].gpu[rows, used // block_size].long()
        slots = blocks * block_size + used % block_size
        # Index -1 stands for a dummy request, which owns no blocks.
        slot_mappings[group, :total] = slots.masked_fill_(rows < 0, PAD_SLOT_ID)
        slot_mappings[group, total:num_tokens_padded] = PAD_SLOT_ID
    return slot_mappings[:, :num_tokens_padded]
