# SPDX-License-Identifier: Apache-2.0
"""Which steps are whole CUDA graphs: vLLM's own dispatch, without a GPU."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from vllm.config import CompilationConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionCGSupport
from vllm.v1.worker.gpu import cudagraph_utils
from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager

from vllm_lladav.denoising.plan import Span
from vllm_lladav.worker import step_graphs
from vllm_lladav.worker.attention import AttendedSequence
from vllm_lladav.worker.step_graphs import StepGraphs, graph_sizes

CPU = torch.device("cpu")
ROWS, BLOCK_SIZE, WIDTH, HIDDEN = 32, 16, 5, 8
LAYERS = ("first", "second")


class Rerun(CudaGraphManager):
    """Runs again, on what was captured, instead of replaying."""

    def capture(self, create_forward_fn: Any, progress_bar_desc: str = "") -> None:
        for desc in self._capture_descs[CUDAGraphMode.FULL]:
            create_forward_fn(desc, warmup=True)(CUDAGraphMode.NONE)
            graph: Any = create_forward_fn(desc, warmup=False)
            self.graphs[desc] = graph
        self._graphs_captured = True

    def run_fullgraph(self, desc: Any) -> None:
        graph: Any = self.graphs[desc]
        graph(CUDAGraphMode.NONE)


@dataclass
class FakeGroup:
    """vLLM's attention group; metadata is what it is made of."""

    metadata_builders: list[Any]
    support: AttentionCGSupport = AttentionCGSupport.UNIFORM_BATCH
    kernel_block_size: int | None = None
    kv_cache_spec: Any = None
    layer_names: tuple[str, ...] = LAYERS
    backend: type = object
    built: list[Any] = field(default_factory=list)
    config: Any = None

    def create_metadata_builders(self, config: Any, device: Any, size: Any) -> None:
        self.config = config
        support = self.support
        self.metadata_builders = [
            SimpleNamespace(
                get_cudagraph_support=lambda config, spec: support,
                supports_update_block_table=False,
            )
        ]

    def get_metadata_builder(self, ubatch_idx: int) -> Any:
        return self.metadata_builders[ubatch_idx]

    def build_metadata(self, common: Any, ubatch_idx: int) -> Any:
        self.built.append(common)
        return common

    build_metadata_for_cudagraph_capture = build_metadata


def config_of(max_num_seqs: int = 6, budget: int = 4096) -> Any:
    compilation = CompilationConfig(
        cudagraph_mode=CUDAGraphMode.PIECEWISE, cudagraph_capture_sizes=[64, 2048]
    )
    return SimpleNamespace(
        compilation_config=compilation,
        scheduler_config=SimpleNamespace(
            max_num_seqs=max_num_seqs, max_num_batched_tokens=budget
        ),
        model_config=SimpleNamespace(max_model_len=4096),
        parallel_config=SimpleNamespace(
            tensor_parallel_size=1,
            data_parallel_size=1,
            use_sequence_parallel_moe=False,
        ),
        cache_config=SimpleNamespace(use_kda_recoverssm=False),
        speculative_config=None,
    )


class FakeTables:
    def __init__(self) -> None:
        self.input_block_tables = [torch.zeros(6, WIDTH, dtype=torch.int32)]
        self.slot_mappings = torch.zeros(1, 4096, dtype=torch.int64)

    def get_dummy_slot_mappings(self, num_tokens: int) -> torch.Tensor:
        return self.slot_mappings.fill_(-1)[:, :num_tokens]


@pytest.fixture(autouse=True)
def without_gpu() -> Iterator[None]:
    group = SimpleNamespace(is_first_rank=True, is_last_rank=True)
    with (
        patch.object(cudagraph_utils, "get_pp_group", lambda: group),
        patch.object(type(current_platform), "_global_graph_pool", object()),
        patch.object(StepGraphs, "manager_cls", Rerun),
        patch.object(step_graphs, "set_forward_context", Context),
    ):
        yield


class Context:
    """Of the forward pass that runs."""

    metadata: Any = None
    slots: Any = None

    def __init__(self, metadata: Any, config: Any, **given: Any) -> None:
        assert given["cudagraph_runtime_mode"] == CUDAGraphMode.NONE
        self.now = metadata["first"], given["slot_mapping"]["second"]

    def __enter__(self) -> None:
        Context.metadata, Context.slots = self.now

    def __exit__(self, *args: Any) -> None:
        Context.metadata = Context.slots = None


def model(*, input_ids: Any, positions: Any, inputs_embeds: Any) -> torch.Tensor:
    """Says what a graph reads: the sum of a row's inputs in every column."""
    assert input_ids is None
    metadata, slots = Context.metadata, Context.slots
    rows = torch.arange(len(positions))
    starts = metadata.query_start_loc
    sequence = torch.searchsorted(starts[1:], rows, right=True)
    sequence = sequence.clamp(max=len(metadata.seq_lens) - 1)
    length = metadata.seq_lens[sequence]
    blocks = metadata.block_table_tensor[sequence].sum(1)
    return inputs_embeds + (positions + length + blocks + slots + starts[-1])[:, None]


def graphs_of(config: Any = None, **changes: Any) -> tuple[StepGraphs, Any, Any]:
    tables: Any = FakeTables()
    group: Any = FakeGroup([], **changes)
    specs: Any = SimpleNamespace(kv_cache_groups=[SimpleNamespace()])
    graphs = StepGraphs(config or config_of(), CPU, ROWS, [[group]], specs, tables)
    return graphs, tables, specs


def captured(config: Any = None) -> tuple[StepGraphs, Any, torch.Tensor, torch.Tensor]:
    graphs, tables, _ = graphs_of(config)
    positions = torch.zeros(4096, dtype=torch.int64)
    embeds = torch.zeros(4096, HIDDEN)
    graphs.capture(model, positions, embeds)  # type: ignore[arg-type]
    return graphs, tables, positions, embeds


@pytest.mark.parametrize(
    ("rows", "max_num_seqs", "budget", "sizes"),
    [
        (32, 6, 4096, [32, 64, 96, 128, 192]),
        (32, 1024, 4096, [32, 64, 96, 128, 192, 256, 384, 512]),
        (128, 1024, 4096, [128, 256, 384, 512]),
        (128, 1024, 300, [128, 256]),
        (4, 1, 4096, [4]),
        (1024, 8, 4096, []),
    ],
)
def test_sizes(rows: int, max_num_seqs: int, budget: int, sizes: list[int]):
    assert graph_sizes(config_of(max_num_seqs, budget), rows) == sizes


@pytest.mark.parametrize(
    ("rows", "graph"),
    [
        ([32], (1, 32)),
        ([32] * 3, (3, 96)),
        ([32] * 5, (6, 192)),
        ([32] * 7, None),  # More sequences than are captured.
        ([31], None),  # A stop cuts the block.
        ([32, 31], None),
        ([64], None),  # As many rows, in one sequence.
        ([1741], None),  # A full step.
        ([32, 1741], None),
    ],
    ids=str,
)
def test_dispatch(rows: list[int], graph: tuple[int, int] | None):
    graphs, *_ = captured()
    desc = graphs.dispatch(rows)
    assert (desc and (desc.num_reqs, desc.num_tokens)) == graph


def test_nothing_is_dispatched_before_the_capture():
    assert graphs_of()[0].dispatch([ROWS]) is None


def test_vllm_is_told_only_what_it_was():
    config = config_of()
    _, _, _ = graphs_of(config)
    assert config.compilation_config.cudagraph_mode == CUDAGraphMode.PIECEWISE
    assert config.compilation_config.cudagraph_capture_sizes == [64, 2048]


def test_attention_that_cannot_be_captured():
    single = AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE
    with pytest.raises(ValueError, match="cudagraph_mode PIECEWISE"):
        graphs_of(support=single)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_replays_read_the_step(count: int):
    """A replay has the tensors of its capture: the step has to be in them."""
    graphs, tables, positions, embeds = captured()
    for step in range(2):
        lengths = [100 + 10 * step + row for row in range(count)]
        sequences = [
            AttendedSequence(row, 0, Span(50, 50 + ROWS), length)
            for row, length in enumerate(lengths)
        ]
        table = torch.randint(1, 9, (count, WIDTH), dtype=torch.int32)
        replay = graphs.find(sequences, lambda _, table=table: table)
        assert replay is not None
        num_tokens = count * ROWS
        embeds[:num_tokens] = torch.randn(num_tokens, HIDDEN)
        positions[:num_tokens] = torch.randint(4096, (num_tokens,))
        tables.slot_mappings[0, :num_tokens] = torch.randint(4096, (num_tokens,))
        per_row = torch.tensor(lengths) + table.sum(1)
        expected = embeds[:num_tokens] + (
            positions[:num_tokens]
            + tables.slot_mappings[0, :num_tokens]
            + per_row.repeat_interleave(ROWS)
            + num_tokens
        ).unsqueeze(1)
        torch.testing.assert_close(replay.run()[:num_tokens], expected)
        metadata = replay.metadata["second"]
        assert metadata.causal is False
        # Behind the step's sequences, the graph's are empty.
        assert metadata.query_start_loc[count:].eq(num_tokens).all()
        assert metadata.seq_lens[count:].eq(0).all()
