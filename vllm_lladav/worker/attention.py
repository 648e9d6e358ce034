# SPDX-License-Identifier: Apache-2.0
"""Attention of one step: which KV slots it writes, and which ones a token sees.

Every token attends to all of its own sequence, in both directions.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d

from vllm_lladav.denoising.plan import Span
from vllm_lladav.worker.prune_pass import AttentionInputs


class AttendedSequence(NamedTuple):
    """One sequence of a step. A guided request has two.

    Attributes:
        row: of the block table: the request's place in the batch.
        first_kv_block: of the request's, from which on they are the sequence's.
        computed: positions that the step computes.
        length: positions that they attend to.
    """

    row: int
    first_kv_block: int
    computed: Span
    length: int


class StepAttention:
    """Builds the attention inputs of a step, again where it prunes on the way.

    Args:
        build: vLLM's ``build_attn_metadata``, given what does not change in a step.
        block_table: ``[num_reqs or more, width]``, int32, of the requests.
        block_size: KV slots of a block.
    """

    def __init__(
        self,
        build: Callable[..., dict[str, Any]],
        block_table: torch.Tensor,
        block_size: int,
    ) -> None:
        self._build = build
        self._block_table = block_table
        self._block_size = block_size
        self._to_device = partial(async_tensor_h2d, device=block_table.device)

    def inputs(self, sequences: Sequence[AttendedSequence]) -> AttentionInputs:
        """For a batch of ``sequences``, in order."""
        lengths = np.array([s.computed.length for s in sequences], np.int32)
        positions = np.concatenate([np.arange(*s.computed) for s in sequences])
        seq_lens = np.array([s.length for s in sequences], np.int32)
        query_start_loc = np.cumsum([0, *lengths], dtype=np.int32)
        slot_mapping = self._slots(sequences, lengths, positions)
        metadata = self._build(
            num_reqs=len(sequences),
            num_tokens=len(positions),
            query_start_loc_gpu=self._to_device(query_start_loc),
            query_start_loc_cpu=torch.from_numpy(query_start_loc),
            max_query_len=int(lengths.max()),
            seq_lens=self._to_device(seq_lens),
            max_seq_len=int(seq_lens.max()),
            block_tables=(self.block_tables(sequences),),
            slot_mappings=slot_mapping[None],
            seq_lens_cpu_upper_bound=torch.from_numpy(seq_lens),
            positions=self._to_device(positions, dtype=torch.int64),
        )
        return AttentionInputs(metadata, slot_mapping)

    def _slots(
        self,
        sequences: Sequence[AttendedSequence],
        lengths: np.ndarray,
        positions: np.ndarray,
    ) -> torch.Tensor:
        """KV slot of every token: ``[num_tokens]``, int64."""
        width = self._block_table.shape[1]
        starts = [s.row * width + s.first_kv_block for s in sequences]
        places = np.repeat(starts, lengths) + positions // self._block_size
        blocks = self._block_table.flatten()[
            self._to_device(places, dtype=torch.int64)
        ].long()
        offsets = self._to_device(positions % self._block_size, dtype=torch.int64)
        return blocks * self._block_size + offsets

    def blocks(self, sequence: AttendedSequence) -> torch.Tensor:
        """All KV blocks of ``sequence``, in order: ``[n]``, int32."""
        first, size = sequence.first_kv_block, self._block_size
        return self._block_table[
            sequence.row, first : first + -(-sequence.length // size)
        ]

    def block_tables(self, sequences: Sequence[AttendedSequence]) -> torch.Tensor:
        """A block table with a row for every sequence."""
        if not any(s.first_kv_block for s in sequences):
            return self._block_table
        return torch.stack(
            [self._block_table[s.row].roll(-s.first_kv_block) for s in sequences]
        )
