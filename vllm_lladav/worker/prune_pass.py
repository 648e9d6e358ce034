# SPDX-License-Identifier: Apache-2.0
"""The prune points of one forward pass.

Between two decoder layers the batch gets shorter: hidden states, positions, the
paged K/V of the layers so far, and the attention metadata of the layers to come.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from vllm.distributed import (
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention import Attention

from vllm_lladav.pruning.params import PruneStage, PruningParams, num_kept
from vllm_lladav.pruning.policies import POLICY, Policy, View
from vllm_lladav.pruning.selection import count_covering, select_kept


class AttentionInputs(NamedTuple):
    """What attention layers read from vLLM's forward context.

    Attributes:
        metadata: by layer name.
        slot_mapping: ``[num_tokens]``, the KV slot of every token.
    """

    metadata: dict[str, Any]
    slot_mapping: torch.Tensor


AttentionInputsOf = Callable[[], AttentionInputs]
"""The inputs for the batch as its requests are now."""


class PrunedRequest(Protocol):
    """What a prune pass needs of a request."""

    def __len__(self) -> int:
        """Tokens of a sequence that are computed in this pass. A request that
        prunes computes all it has."""

    @property
    def num_sequences(self) -> int:
        """Sequences of that length. Their rows follow each other; the first one is
        looked at, and all of them drop the same positions."""

    @property
    def pruning(self) -> PruningParams | None: ...

    @property
    def visual(self) -> torch.Tensor:
        """Positions of the visual tokens that are left: ``[m]``, int64."""

    @property
    def image_ids(self) -> torch.Tensor:
        """The image of each: ``[m]``, int64."""

    @property
    def seed(self) -> int | None: ...

    def stages(self) -> tuple[PruneStage, ...]:
        """Stages of the step that runs."""

    def attention_rows(self, queries: str) -> torch.Tensor:
        """Positions whose attention counts: ``[r]``, int64."""

    def keep_visual(self, pruned: "Pruned") -> None:
        """Forget the visual tokens that are not kept."""


@dataclass(frozen=True)
class Pruned:
    """What one stage did to one request.

    Attributes:
        stage: of the schedule.
        scores: ``[m]``, float32, of the visual tokens that were left, averaged over
            heads and layers where they are attention.
        kept: ``[k]``, int64, ascending: which of the ``m`` stay.
        positions: ``[n - dropped]``, int64: the tokens that stay, of the request's
            ``n`` so far.
        seconds: host time of the prune point, shared by its requests.
    """

    stage: PruneStage
    scores: torch.Tensor
    kept: torch.Tensor
    positions: torch.Tensor
    seconds: float


@dataclass
class _Entry:
    """A request in the batch and what is left of its schedule in this step."""

    request: PrunedRequest
    stages: list[PruneStage]
    policy: Policy | None = None
    scores: torch.Tensor | None = None
    num_observed: int = 0


@dataclass
class _Seen:
    """One layer's attention inputs over the whole batch: ``[num_tokens, ...]``."""

    query: torch.Tensor | None
    key: torch.Tensor
    value: torch.Tensor


@dataclass
class PrunePass:
    """Follows one forward pass and prunes where requests ask for it.

    The cost grows with the number of distinct layers at which requests prune, not
    with the number of requests: each of them shortens the batch once.

    Args:
        requests: all of the batch, in order, those that do not prune included.
        attentions: the attention of every decoder layer, in order.
        attention_inputs: how the shortened batch attends.
    """

    requests: Sequence[PrunedRequest]
    attentions: Sequence[Attention]
    attention_inputs: AttentionInputsOf
    _seen: dict[int, _Seen] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._entries = [_entry(request) for request in self.requests]
        self._last_layer = max(
            (entry.stages[-1].layer for entry in self._entries if entry.stages),
            default=0,
        )

    @property
    def is_needed(self) -> bool:
        """Whether any request prunes in this pass."""
        return self._last_layer > 0

    @property
    def lengths(self) -> list[int]:
        """Rows of each request, as they are now."""
        return [request.num_sequences * len(request) for request in self.requests]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep what the layers up to the last prune point attend with."""
        handles = [
            attention.register_forward_pre_hook(partial(self._see, layer))
            for layer, attention in enumerate(self.attentions, start=1)
            if layer <= self._last_layer
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._seen.clear()

    def _see(self, layer: int, _: Any, args: tuple[torch.Tensor, ...]) -> None:
        query, key, value = args[:3]
        self._seen[layer] = _Seen(query, key, value)

    def after_layer(self, layer: int) -> torch.Tensor | None:
        """Prune what is due after ``layer`` (counted from 1).

        Returns:
            The rows of the batch that stay, ``[num_tokens left]``, int64, ascending;
            None where nothing is pruned. K/V of the layers so far are compacted and
            the layers to come attend to the rows that stay.
        """
        if layer > self._last_layer:
            return None
        started = time.perf_counter()
        offsets = np.cumsum([0, *self.lengths])
        self._observe(layer, offsets)
        self._seen[layer].query = None
        due = [
            index
            for index, entry in enumerate(self._entries)
            if entry.stages and entry.stages[0].layer == layer
        ]
        if not due:
            return None
        kept = self._select(due)
        seconds = (time.perf_counter() - started) / len(due)
        rows = self._shorten(offsets, dict(zip(due, kept, strict=True)), seconds)
        self._attend_shortened(layer, rows, due)
        return rows

    def _observe(self, layer: int, offsets: np.ndarray) -> None:
        """Let the policies look at the layer."""
        attention, seen = self.attentions[layer - 1], self._seen[layer]
        assert seen.query is not None
        for index, entry in enumerate(self._entries):
            if not entry.stages:
                continue
            assert entry.policy is not None
            stage, request = entry.stages[0], entry.request
            if not entry.policy.observes(layer, stage.layer):
                continue
            assert request.pruning is not None
            first = int(offsets[index])
            tokens = slice(first, first + len(request))
            view = View(
                query=seen.query[tokens].unflatten(-1, (attention.num_heads, -1)),
                key=seen.key[tokens].unflatten(-1, (attention.num_kv_heads, -1)),
                scale=attention.impl.scale,
                rows=request.attention_rows(request.pruning.queries),
                visual=request.visual,
                num_kept=_num_kept(request, stage),
                seed=request.seed,
            )
            scores = entry.policy.score(view)
            entry.scores = scores if entry.scores is None else entry.scores + scores
            entry.num_observed += 1

    def _select(self, due: list[int]) -> list[torch.Tensor]:
        """Which visual tokens stay, for each request that is due."""
        entries = [self._entries[index] for index in due]
        totals = []
        for entry in entries:
            assert entry.scores is not None
            totals.append(entry.scores)
        if get_tensor_model_parallel_world_size() > 1:
            # Every rank scored with its own heads; without the sum they disagree.
            summed = tensor_model_parallel_all_reduce(torch.cat(totals))
            totals = list(summed.split([len(scores) for scores in totals]))
        num_heads = self.attentions[0].num_heads
        num_heads *= get_tensor_model_parallel_world_size()
        kept = []
        for entry, scores in zip(entries, totals, strict=True):
            entry.scores = scores / (num_heads * entry.num_observed)
            kept.append(_choose(entry.request, entry.stages[0], entry.scores))
        return kept

    def _shorten(
        self, offsets: np.ndarray, kept: dict[int, torch.Tensor], seconds: float
    ) -> torch.Tensor:
        """Tell the requests, and return the rows of the batch that stay."""
        rows = []
        for index, entry in enumerate(self._entries):
            request = entry.request
            length = len(request)
            positions = torch.arange(length, device=request.visual.device)
            if index in kept:
                stays = torch.ones_like(positions, dtype=torch.bool)
                stays[request.visual] = False
                stays[request.visual[kept[index]]] = True
                positions = positions[stays]
                assert entry.scores is not None
                stage = entry.stages.pop(0)
                request.keep_visual(
                    Pruned(stage, entry.scores, kept[index], positions, seconds)
                )
                # The next stage of this step looks anew.
                entry.scores, entry.num_observed = None, 0
            for number in range(request.num_sequences):
                rows.append(positions + int(offsets[index]) + number * length)
        return torch.cat(rows)

    def _attend_shortened(self, layer: int, rows: torch.Tensor, due: list[int]) -> None:
        """Compact the K/V of layers 1 to ``layer`` of the requests that are due, and
        let the layers to come attend to ``rows`` only."""
        inputs = self.attention_inputs()
        offsets = np.cumsum([0, *self.lengths])
        moved = torch.cat(
            [torch.arange(offsets[i], offsets[i + 1], device=rows.device) for i in due]
        )
        slots = inputs.slot_mapping[moved]
        for earlier in range(1, layer + 1):
            seen = self._seen[earlier]
            seen.key, seen.value = seen.key[rows], seen.value[rows]
            _write_kv(self.attentions[earlier - 1], seen, moved, slots)
        context = get_forward_context()
        context.attn_metadata = inputs.metadata
        context.slot_mapping = dict.fromkeys(inputs.metadata, inputs.slot_mapping)


def _entry(request: PrunedRequest) -> _Entry:
    stages = list(request.stages())
    policy = POLICY[request.pruning.policy] if stages and request.pruning else None
    return _Entry(request, stages, policy)


def _num_kept(request: PrunedRequest, stage: PruneStage) -> int:
    num_images = len(request.image_ids.unique())
    return num_kept(len(request.visual), num_images, stage.rate)


def _choose(
    request: PrunedRequest, stage: PruneStage, scores: torch.Tensor
) -> torch.Tensor:
    count = _num_kept(request, stage)
    assert request.pruning is not None
    if request.pruning.is_adaptive:
        covering = count_covering(scores, request.image_ids, request.pruning.tau)
        count = min(count, covering)
    return select_kept(scores, request.image_ids, count)


def _write_kv(
    attention: Attention, seen: _Seen, rows: torch.Tensor, slots: torch.Tensor
) -> None:
    """Write ``rows`` of a layer's K/V to ``slots``, as the layer itself does."""
    shape = (-1, attention.num_kv_heads, attention.head_size)
    impl: Any = attention.impl  # Every paged backend has it, the base class has not.
    impl.do_kv_cache_update(
        attention,
        seen.key[rows].view(shape),
        seen.value[rows].view(shape),
        attention.kv_cache,
        slots,
    )
