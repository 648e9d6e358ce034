# SPDX-License-Identifier: Apache-2.0
"""The prune points of one forward pass.

Between two decoder layers the batch gets shorter: hidden states, positions, the
paged K/V of the layers so far, and the attention metadata of the layers to come.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention import Attention

from vllm_lladav.worker.compaction import SeenLayer, watched
from vllm_lladav.worker.scoring import PrunedRequest, Scoring, select_all


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
    _seen: list[SeenLayer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._scorings = {
            index: Scoring(request, request.pruning)
            for index, request in enumerate(self.requests)
            if request.pruning is not None and request.stages()
        }
        self._last_layer = max(
            (scoring.stages[-1].layer for scoring in self._scorings.values()),
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
        with watched(self.attentions[: self._last_layer]) as self._seen:
            yield

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
        seen, offsets = self._seen[layer - 1], np.cumsum([0, *self.lengths])
        for index, scoring in self._scorings.items():
            scoring.observe(layer, seen, int(offsets[index]))
        seen.query = None
        due = {i: s for i, s in self._scorings.items() if s.is_due(layer)}
        if not due:
            return None
        kept = select_all(list(due.values()), seen.attention.num_heads)
        seconds = (time.perf_counter() - started) / len(due)
        left = {
            index: scoring.prune(kept_visual, seconds)
            for (index, scoring), kept_visual in zip(due.items(), kept, strict=True)
        }
        rows = self._rows(offsets, left)
        self._attend_shortened(rows, list(due))
        return rows

    def _rows(self, offsets: np.ndarray, left: dict[int, torch.Tensor]) -> torch.Tensor:
        """The rows of the batch that stay: all but those of requests that have only
        the positions in ``left``."""
        rows = []
        for index, request in enumerate(self.requests):
            first, end = int(offsets[index]), int(offsets[index + 1])
            length = (end - first) // request.num_sequences
            positions = left.get(index)
            if positions is None:
                positions = torch.arange(length, device=request.visual.device)
            for number in range(request.num_sequences):
                rows.append(positions + first + number * length)
        return torch.cat(rows)

    def _attend_shortened(self, rows: torch.Tensor, due: list[int]) -> None:
        """Compact the K/V of the layers so far of the requests that are due, and let
        the layers to come attend to ``rows`` only."""
        inputs = self.attention_inputs()
        offsets = np.cumsum([0, *self.lengths])
        moved = torch.cat(
            [torch.arange(offsets[i], offsets[i + 1], device=rows.device) for i in due]
        )
        slots = inputs.slot_mapping[moved]
        for layer in self._seen:
            layer.compact(rows, moved, slots)
        context = get_forward_context()
        context.attn_metadata = inputs.metadata
        context.slot_mapping = dict.fromkeys(inputs.metadata, inputs.slot_mapping)
