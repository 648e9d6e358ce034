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

from vllm_lladav.worker.compaction import Compaction, Move, compaction_for
from vllm_lladav.worker.scoring import PrunedRequest, Scoring, SeenLayer, select_all


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
    _seen: SeenLayer | None = field(default=None, repr=False)
    _compaction: Compaction | None = field(default=None, repr=False)

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

    @contextmanager
    def watching(self) -> Iterator[None]:
        """See what the layers up to the last prune point attend with."""
        watched = self.attentions[: self._last_layer]
        if watched:
            self._compaction = compaction_for(watched[0])
        handles = [
            attention.register_forward_pre_hook(self._see) for attention in watched
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._seen = self._compaction = None

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
        seen, offsets = self._seen, self._offsets()
        assert seen is not None
        for index, scoring in self._scorings.items():
            scoring.observe(layer, seen, int(offsets[index]))
        self._seen = None
        due = {i: s for i, s in self._scorings.items() if s.is_due(layer)}
        if not due:
            return None
        kept = select_all(list(due.values()), seen.attention.num_heads)
        seconds = (time.perf_counter() - started) / len(due)
        stays = {
            index: scoring.prune(visual, seconds).repeat(scoring.request.num_sequences)
            for (index, scoring), visual in zip(due.items(), kept, strict=True)
        }
        # A batch may be padded behind its requests.
        of_batch = torch.ones(
            int(offsets[-1]), dtype=torch.bool, device=seen.key.device
        )
        for index, of_request in stays.items():
            of_batch[offsets[index] : offsets[index + 1]] = of_request
        # Of known size: the host need not wait for the device.
        rows = of_batch.nonzero_static(size=int(self._offsets()[-1]))[:, 0]
        self._attend_shortened(rows, stays)
        return rows

    def _offsets(self) -> np.ndarray:
        """First row of each request, as they are now, and the end of the batch."""
        lengths = [request.num_sequences * len(request) for request in self.requests]
        return np.cumsum([0, *lengths])

    def _see(self, attention: Any, args: tuple[torch.Tensor, ...]) -> None:
        """A layer is about to attend."""
        self._seen = SeenLayer(attention, *args[:3])
        assert self._compaction is not None
        offsets = self._offsets()
        rows = {
            index: slice(offsets[index], offsets[index + 1])
            for index, scoring in self._scorings.items()
            if scoring.stages
        }
        self._compaction.see(self._seen, rows)

    def _attend_shortened(
        self, rows: torch.Tensor, stays: dict[int, torch.Tensor]
    ) -> None:
        """Compact the K/V of the layers so far of the requests that are pruned, and let
        the layers to come attend to ``rows`` only. ``stays``: see :class:`Move`."""
        context = get_forward_context()
        slot_mapping: Any = context.slot_mapping  # By layer.
        before = next(iter(slot_mapping.values()))
        inputs = self.attention_inputs()
        offsets = self._offsets()
        moved = torch.cat(
            [
                torch.arange(offsets[i], offsets[i + 1], device=rows.device)
                for i in stays
            ]
        )
        assert self._compaction is not None
        self._compaction.move(
            Move(stays, before[rows[moved]], inputs.slot_mapping[moved])
        )
        context.attn_metadata = inputs.metadata
        context.slot_mapping = dict.fromkeys(inputs.metadata, inputs.slot_mapping)
