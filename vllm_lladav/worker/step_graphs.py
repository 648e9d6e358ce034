# SPDX-License-Identifier: Apache-2.0
"""Cached steps as whole CUDA graphs.

vLLM's runner knows one query length for its own full graphs, that of a decode, and
replays them without asking. These are ours: ``ModelState.capture_inner_cudagraphs``
captures them, and the model's forward replays one where the batch is uniform. What
vLLM dispatches (graphs of pieces, or none) is untouched, and is what all other steps
run in.
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.config.compilation import CUDAGraphMode
from vllm.forward_context import set_forward_context
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.gpu.attn_utils import build_attn_metadata, get_attn_cg_support
from vllm.v1.worker.gpu.block_table import BlockTables
from vllm.v1.worker.gpu.cudagraph_utils import (
    BatchExecutionDescriptor,
    CudaGraphManager,
)
from vllm.v1.worker.utils import AttentionGroup

from vllm_lladav.worker.attention import AttendedSequence

MOST_ROWS = 512
"""Of a whole graph: vLLM's own bound for decodes. FlashAttention splits K/V in a graph
and keeps up to 32 results of every row; longer steps take a GPU longer than their
launch."""

NUM_SEQUENCES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""That graphs are captured for."""


class Replay(NamedTuple):
    """A step that is a whole graph.

    Attributes:
        metadata: of its attention, by layer name.
        run: replays it. ``[num_tokens or more, hidden]``, after the final norm; valid
            until the next one.
    """

    metadata: dict[str, Any]
    run: Callable[[], torch.Tensor]


class StepGraphs:
    """Graphs of steps in which every sequence computes ``num_rows``.

    A graph reads the addresses that it was captured with: ``positions``,
    ``inputs_embeds`` and the slot mapping are the runner's buffers; where sequences
    begin, their lengths and their KV blocks are copied into buffers of its own.

    Args:
        num_rows: of a sequence in such a step.
        attn_groups: vLLM's. The graphs have metadata builders of their own, which know
            that they are captured.
        block_tables: the runner's.
    """

    manager_cls = CudaGraphManager

    def __init__(
        self,
        vllm_config: VllmConfig,
        device: torch.device,
        num_rows: int,
        attn_groups: list[list[AttentionGroup]],
        kv_cache_config: KVCacheConfig,
        block_tables: BlockTables,
    ) -> None:
        self._vllm_config = vllm_config
        self._num_rows = num_rows
        self._kv_cache_config = kv_cache_config
        self._runner_tables = block_tables
        sizes = graph_sizes(vllm_config, num_rows)
        config = _config_of_graphs(vllm_config, sizes)
        mode = config.compilation_config.cudagraph_mode
        # From it, FlashAttention takes the version that a user asked for.
        with set_current_vllm_config(config):
            self._groups = [
                [_own(group, config, device) for group in groups]
                for groups in attn_groups
            ]
        support = get_attn_cg_support(self._groups, config)
        if support.min_cg_support.value < AttentionCGSupport.UNIFORM_BATCH.value:
            raise ValueError(
                f"attention of {support.min_cg_attn_backend} cannot be part of a CUDA "
                "graph; serve with cudagraph_mode PIECEWISE"
            )
        self._manager = self.manager_cls(config, device, mode, num_rows)
        most = max(sizes) // num_rows
        (table,) = block_tables.input_block_tables
        self._starts = torch.zeros(most + 1, dtype=torch.int32, device=device)
        self._lengths = torch.zeros(most, dtype=torch.int32, device=device)
        self._blocks = torch.zeros_like(table[:1]).repeat(most, 1)
        self._most_tokens = max(sizes)

    def capture(
        self, model: nn.Module, positions: torch.Tensor, inputs_embeds: torch.Tensor
    ) -> None:
        """Capture all of them, over the buffers ``positions`` (``[most]``) and
        ``inputs_embeds`` (``[most, hidden]``)."""
        self._hidden_states = torch.zeros_like(inputs_embeds[: self._most_tokens])

        def prepare(
            desc: BatchExecutionDescriptor, warmup: bool
        ) -> Callable[[CUDAGraphMode], None]:
            num_tokens, num_sequences = desc.num_tokens, desc.num_reqs
            assert num_sequences is not None
            slots = self._runner_tables.get_dummy_slot_mappings(num_tokens)
            self._blocks.zero_()  # vLLM's null block.
            lengths = np.full(num_sequences, self._num_rows, np.int32)
            metadata = self._metadata(desc, lengths, for_capture=True)
            slot_mapping = dict.fromkeys(metadata, slots[0])

            def forward(mode: CUDAGraphMode) -> None:
                with set_forward_context(
                    metadata,
                    self._vllm_config,
                    num_tokens=num_tokens,
                    cudagraph_runtime_mode=mode,
                    slot_mapping=slot_mapping,
                ):
                    self._hidden_states[:num_tokens] = model(
                        input_ids=None,
                        positions=positions[:num_tokens],
                        inputs_embeds=inputs_embeds[:num_tokens],
                    )

            return forward

        self._manager.capture(prepare, "Capturing CUDA graphs (cached steps)")

    def find(
        self,
        sequences: Sequence[AttendedSequence],
        block_tables: Callable[[Sequence[AttendedSequence]], torch.Tensor],
    ) -> Replay | None:
        """The graph of a step with ``sequences``, its buffers filled but for those of
        the runner; None where none fits.

        Args:
            block_tables: one with a row for every sequence, at least.
        """
        count = len(sequences)
        desc = self.dispatch([sequence.computed.length for sequence in sequences])
        if desc is None:
            return None
        self._blocks[:count].copy_(block_tables(sequences)[:count])
        lengths = np.array([sequence.length for sequence in sequences], np.int32)
        metadata = self._metadata(desc, lengths)

        def run() -> torch.Tensor:
            self._manager.run_fullgraph(desc)
            return self._hidden_states[: desc.num_tokens]

        return Replay(metadata, run)

    def dispatch(self, num_rows: Sequence[int]) -> BatchExecutionDescriptor | None:
        """The graph for sequences that compute ``num_rows``, if there is one."""
        if any(rows != self._num_rows for rows in num_rows):
            return None
        desc = self._manager.dispatch(len(num_rows), sum(num_rows), self._num_rows, 0)
        return desc if desc.cg_mode == CUDAGraphMode.FULL else None

    def _metadata(
        self,
        desc: BatchExecutionDescriptor,
        lengths: np.ndarray,
        for_capture: bool = False,
    ) -> dict[str, Any]:
        """Of sequences of ``lengths``, padded with empty ones."""
        padded = desc.num_reqs
        assert padded is not None
        starts = np.minimum(np.arange(padded + 1), len(lengths)) * self._num_rows
        starts = starts.astype(np.int32)
        lengths = np.pad(lengths, (0, padded - len(lengths)))
        async_tensor_h2d(starts, out=self._starts[: padded + 1])
        async_tensor_h2d(lengths, out=self._lengths[:padded])
        return build_attn_metadata(
            attn_groups=self._groups,
            num_reqs=padded,
            num_tokens=desc.num_tokens,
            query_start_loc_gpu=self._starts[: padded + 1],
            query_start_loc_cpu=torch.from_numpy(starts),
            max_query_len=self._num_rows,
            seq_lens=self._lengths[:padded],
            # As it was captured: part of what attention launches follows from it.
            max_seq_len=self._vllm_config.model_config.max_model_len,
            block_tables=(self._blocks[:padded],),
            slot_mappings=self._runner_tables.slot_mappings[:, : desc.num_tokens],
            kv_cache_config=self._kv_cache_config,
            seq_lens_cpu_upper_bound=torch.from_numpy(lengths),
            for_cudagraph_capture=for_capture,
            causal=False,
        )


def graph_sizes(vllm_config: VllmConfig, num_rows: int) -> list[int]:
    """Rows of the graphs for sequences of ``num_rows``; none if those are too long."""
    scheduler = vllm_config.scheduler_config
    most_rows = min(MOST_ROWS, scheduler.max_num_batched_tokens)
    most = min(scheduler.max_num_seqs, most_rows // num_rows)
    return [count * num_rows for count in NUM_SEQUENCES if count <= most]


def _config_of_graphs(vllm_config: VllmConfig, sizes: list[int]) -> VllmConfig:
    """What those who take part in a graph are told."""
    compilation = copy(vllm_config.compilation_config)
    compilation.cudagraph_mode = CUDAGraphMode.FULL_DECODE_ONLY
    compilation.cudagraph_capture_sizes = sizes
    compilation.max_cudagraph_capture_size = max(sizes)
    config = copy(vllm_config)
    config.compilation_config = compilation
    return config


def _own(
    group: AttentionGroup, config: VllmConfig, device: torch.device
) -> AttentionGroup:
    """The same layers with a metadata builder that knows of the graphs."""
    own = replace(group, metadata_builders=[])
    own.create_metadata_builders(config, device, group.kernel_block_size)
    return own
