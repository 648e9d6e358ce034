# SPDX-License-Identifier: Apache-2.0
"""One forward pass with prune points, on fake layers, against a plain reference."""

import gc
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vllm_lladav.pruning.params import PruneStage, PruningParams
from vllm_lladav.pruning.policies import POLICIES
from vllm_lladav.pruning.policies.aggregated import Aggregated
from vllm_lladav.pruning.policy import View
from vllm_lladav.worker import prune_pass, scoring
from vllm_lladav.worker.prune_pass import AttentionInputs, PrunePass
from vllm_lladav.worker.scoring import Pruned

HEADS, HEAD_DIM = 2, 4
WIDTH = HEADS * HEAD_DIM
NUM_LAYERS = 4
SLOTS_PER_REQUEST = 100
BLOCK_SIZE = 10
BACKENDS = ("CPU_ATTN", "FLASH_ATTN")
"""One with a cache of its own layout, one with a plain one."""
CACHES = (
    *((backend, "auto") for backend in BACKENDS),
    ("FLASH_ATTN", "fp8"),
    ("TRITON_ATTN", "fp8_per_token_head"),
)
FP8 = torch.float8_e4m3fn
TWIN = 50  # From a token to its twin, and from the slots of a sequence to the twin's.


class FakeAttention(nn.Module):
    """Takes q, k, v as vLLM's does, and records where K/V is written.

    Args:
        backend: name of vLLM's.
        kv_cache_dtype: vLLM's flag; FP8 is kept as bytes.
    """

    num_heads = num_kv_heads = HEADS
    head_size = HEAD_DIM

    def __init__(self, backend: str = "CPU_ATTN", kv_cache_dtype: str = "auto") -> None:
        super().__init__()
        self.kv_cache_dtype = kv_cache_dtype
        shape = (3 * SLOTS_PER_REQUEST // BLOCK_SIZE, HEADS, BLOCK_SIZE, 2 * HEAD_DIM)
        self.kv_cache = torch.full(shape, -1.0)
        if self.is_fp8:
            self.kv_cache = self.kv_cache.to(FP8).view(torch.uint8)
        self.attn_backend = SimpleNamespace(get_name=lambda: backend)
        self.impl = SimpleNamespace(scale=0.5, do_kv_cache_update=self.write)

    @property
    def is_fp8(self) -> bool:
        return self.kv_cache_dtype.startswith("fp8")

    def write(self, layer: Any, key: Any, value: Any, cache: Any, slots: Any) -> None:
        assert layer is self and cache is self.kv_cache
        rows = torch.cat([key, value], dim=-1)
        if self.is_fp8:
            rows = rows.to(FP8).view(torch.uint8)
        cache.transpose(1, 2)[slots // BLOCK_SIZE, slots % BLOCK_SIZE] = rows

    def read(self, slots: Any) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self.kv_cache.transpose(1, 2)[slots // BLOCK_SIZE, slots % BLOCK_SIZE]
        if self.is_fp8:
            rows = rows.view(FP8).float()
        key, value = rows.split(HEAD_DIM, dim=-1)
        return key.flatten(1), value.flatten(1)

    def forward(self, query: Any, key: Any, value: Any, slots: Any) -> None:
        shape = (-1, HEADS, HEAD_DIM)
        self.write(self, key.view(shape), value.view(shape), self.kv_cache, slots)


@dataclass
class FakeRequest:
    tokens: list[int]  # Unique; which token stands at which position.
    num_prompt: int
    images: list[list[int]]  # Positions.
    pruning: PruningParams | None
    seed: int = 3
    num_sequences: int = 1
    stages_done: list[Pruned] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.visual = torch.tensor([p for i in self.images for p in i]).long()
        self.image_ids = torch.tensor([n for n, i in enumerate(self.images) for _ in i])
        self.image_ids = self.image_ids.long()

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_images(self) -> int:
        return len(self.images)

    @property
    def sequences(self) -> list[list[int]]:
        twin = [token + TWIN for token in self.tokens]
        return [self.tokens, twin][: self.num_sequences]

    def stages(self) -> tuple[PruneStage, ...]:
        return () if self.pruning is None else self.pruning.stages

    def attention_rows(self, queries: str) -> torch.Tensor:
        return torch.arange(len(self))[-1 if queries == "last" else 0 :]

    def keep_visual(self, pruned: Pruned) -> None:
        visual_tokens = [self.tokens[p] for p in self.visual[pruned.kept]]
        self.tokens = [self.tokens[p] for p in pruned.positions]
        self.visual = torch.tensor([self.tokens.index(t) for t in visual_tokens])
        self.image_ids = self.image_ids[pruned.kept]
        self.stages_done.append(pruned)


@st.composite
def requests(draw: st.DrawFn) -> list[FakeRequest]:
    made = []
    for index in range(draw(st.integers(1, 3))):
        before, after = draw(st.integers(1, 3)), draw(st.integers(1, 8))
        position, images = before, []
        for _ in range(draw(st.integers(0, 2))):
            length = draw(st.integers(1, 15))
            images.append(list(range(position, position + length)))
            position += length + draw(st.integers(0, 2))
        length = position + after
        layers = draw(st.sets(st.integers(1, NUM_LAYERS), max_size=2))
        stages = tuple(
            PruneStage(1, layer, draw(st.floats(0.01, 0.99)))
            for layer in sorted(layers)
        )
        policy = draw(st.sampled_from(POLICIES))
        pruning = PruningParams(stages, policy) if stages and images else None
        tokens = [100 * index + i for i in range(length)]
        num_sequences = draw(st.integers(1, 2))
        made.append(
            FakeRequest(tokens, position, images, pruning, num_sequences=num_sequences)
        )
    return made


@settings(deadline=None, max_examples=150)
@given(requests(), st.integers(0, 2**31), st.sampled_from(CACHES))
def test_prune_pass(batch: list[FakeRequest], seed: int, cache: tuple[str, str]):
    """After the pass: rows, metadata and slots of what is left, and in every layer
    exactly the K/V of the tokens that are left, without gaps, in the first slots."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(NUM_LAYERS, 3, 300, WIDTH, generator=generator)
    values = values.to(FP8).float()  # Numbers that every cache holds.
    attentions = [FakeAttention(*cache) for _ in range(NUM_LAYERS)]
    calls = []

    def attention_inputs() -> AttentionInputs:
        calls.append(len(calls) + 1)
        return AttentionInputs(dict.fromkeys("ab", calls[-1]), slots_of_batch())

    def slots_of_batch() -> torch.Tensor:
        return torch.cat(
            [
                torch.arange(len(request)) + SLOTS_PER_REQUEST * index + TWIN * number
                for index, request in enumerate(batch)
                for number in range(request.num_sequences)
            ]
        )

    def tokens_of_batch() -> list[int]:
        return [t for request in batch for tokens in request.sequences for t in tokens]

    left = torch.tensor(tokens_of_batch())
    slots = slots_of_batch()
    context = SimpleNamespace(attn_metadata=None, slot_mapping={"a": slots})
    with (
        patch.object(prune_pass, "get_forward_context", lambda: context),
        patch.object(scoring, "get_tensor_model_parallel_world_size", lambda: 1),
    ):
        passing = PrunePass(batch, attentions, attention_inputs)  # type: ignore
        pruning = [r for r in batch if r.pruning is not None]
        assert passing.is_needed == bool(pruning)
        with passing.watching():
            for layer in range(1, NUM_LAYERS + 1):
                q, k, v = values[layer - 1][:, left]
                attentions[layer - 1](q, k, v, slots)
                rows = passing.after_layer(layer)
                due = [r for r in pruning if layer in [s.layer for s in r.stages()]]
                assert (rows is not None) == bool(due)
                if rows is not None:
                    left, slots = left[rows], context.slot_mapping["a"]
                    assert context.attn_metadata == {"a": calls[-1], "b": calls[-1]}
    assert left.tolist() == tokens_of_batch()
    # The cost grows with distinct layers.
    assert len(calls) == len({s.layer for r in pruning for s in r.stages()})
    for index, request in enumerate(batch):
        for number, sequence in enumerate(request.sequences):
            tokens = torch.tensor(sequence)
            where = torch.arange(len(tokens)) + SLOTS_PER_REQUEST * index
            where += TWIN * number
            for layer in range(NUM_LAYERS):
                key, value = attentions[layer].read(where)
                assert torch.equal(key, values[layer, 1, tokens])
                assert torch.equal(value, values[layer, 2, tokens])
        done = [pruned.stage for pruned in request.stages_done]
        assert done == list(request.stages())
        for image, positions in enumerate(request.images):
            kept = (request.image_ids == image).sum()
            assert 1 <= kept <= len(positions)


def test_nothing_is_watched_without_stages():
    """The ordinary path is not slowed down."""
    attention = FakeAttention()
    request = FakeRequest([1, 2], 1, [], None)
    passing = PrunePass([request], [attention], lambda: None)  # type: ignore
    assert not passing.is_needed
    with passing.watching():
        assert not attention._forward_pre_hooks


@pytest.mark.parametrize("backend", BACKENDS)
def test_memory_of_a_pass(backend: str):
    """What waits for the prune point: nothing where the cache can be read, else K/V of
    the requests that prune, without the buffer that these are views of."""
    pruning = PruningParams((PruneStage(1, NUM_LAYERS, 0.5),))
    batch = [
        FakeRequest(list(range(80)), 2, [], None),
        FakeRequest(list(range(100, 112)), 10, [list(range(1, 9))], pruning),
    ]
    attentions = [FakeAttention(backend) for _ in range(NUM_LAYERS)]
    passing = PrunePass(batch, attentions, lambda: None)  # type: ignore
    before = bytes_by_storage()
    with passing.watching():
        for layer in range(1, NUM_LAYERS):
            q, k, v = torch.ones(92, 3 * WIDTH).split(WIDTH, dim=-1)
            attentions[layer - 1](q, k, v, torch.arange(92))
            passing.after_layer(layer)
            del q, k, v
        held = {p: n for p, n in bytes_by_storage().items() if p not in before}
    rows = 12 if backend == "CPU_ATTN" else 0
    assert sum(held.values()) == (NUM_LAYERS - 1) * 2 * rows * WIDTH * 4


def bytes_by_storage() -> dict[int, int]:
    """Of all tensors that are as wide as keys."""
    gc.collect()
    storages = [
        x.untyped_storage()
        for x in gc.get_objects()
        if isinstance(x, torch.Tensor) and x.dim() == 2 and x.shape[1] == WIDTH
    ]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def test_what_a_policy_sees():
    """Its request's tokens, of the first sequence, as many as are left; and how many
    the plan leaves, whatever it says itself."""
    views: list[View] = []

    class Watching(Aggregated):
        def score(self, view: View) -> torch.Tensor:
            views.append(view)
            return torch.arange(len(view.visual), dtype=torch.float32)

        def count(self, ranked: torch.Tensor, num_kept: int, tau: float) -> int:
            return 9

    stages = (PruneStage(2, 2, 0.5), PruneStage(2, 3, 0.9))
    pruning = PruningParams(stages, queries="last")
    images = [list(range(1, 6)), list(range(7, 10))]
    batch = [
        FakeRequest(list(range(4)), 2, [], None, num_sequences=2),
        FakeRequest(list(range(12)), 10, images, pruning, num_sequences=2),
    ]
    attentions = [FakeAttention() for _ in range(NUM_LAYERS)]
    left, rows_left = torch.arange(35), []  # 3 rows of padding.
    context = SimpleNamespace(attn_metadata=None, slot_mapping={"a": torch.arange(32)})
    inputs = AttentionInputs({"a": None}, torch.arange(32))
    with (
        patch.object(prune_pass, "get_forward_context", lambda: context),
        patch.object(scoring, "get_tensor_model_parallel_world_size", lambda: 1),
        patch.object(scoring, "policy_of", lambda name: Watching()),
    ):
        passing = PrunePass(batch, attentions, lambda: inputs)  # type: ignore
        with passing.watching():
            for layer in range(1, NUM_LAYERS + 1):
                query = (left + 100.0 * layer)[:, None].expand(-1, WIDTH)
                attentions[layer - 1](
                    query, query + 0.25, query, torch.arange(len(left))
                )
                rows = passing.after_layer(layer)
                if rows is not None:
                    left = left[rows]
                    rows_left.append(left.tolist())
    # The best of the first image, 5, is one of the 4 best anyway.
    after_two = [0, 5, 6, 7, 8, 9, 10, 11]
    after_three = [0, 5, 6, 9, 10, 11]
    for seen, expected in zip(rows_left, [after_two, after_three], strict=True):
        twins = [8 + token + 12 * twin for twin in range(2) for token in expected]
        assert seen == [*range(8), *twins]
    assert [(view.step, view.layer) for view in views] == [(2, 1), (2, 2), (2, 3)]
    assert [view.num_kept for view in views] == [4, 4, 2]
    tokens = [list(range(12)), list(range(12)), after_two]
    visual = [[1, 2, 3, 4, 5, 7, 8, 9]] * 2 + [[1, 3, 4, 5]]
    for view, seen, places in zip(views, tokens, visual, strict=True):
        assert view.query.shape == view.key.shape == (len(seen), HEADS, HEAD_DIM)
        expected = torch.tensor(seen) + 8 + 100.0 * view.layer
        assert torch.equal(view.query[:, 0, 0], expected)
        assert torch.equal(view.key[:, 1, 3], expected + 0.25)
        assert view.rows.tolist() == [len(seen) - 1]
        assert view.visual.tolist() == places
        assert (view.scale, view.seed) == (0.5, 3)
    # Averaged over two layers and two heads; over one layer and two heads.
    first, second = (pruned.scores for pruned in batch[1].stages_done)
    assert first.tolist() == [score / 2 for score in range(8)]
    assert second.tolist() == [score / 2 for score in range(4)]
