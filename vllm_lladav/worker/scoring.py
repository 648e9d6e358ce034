# SPDX-License-Identifier: Apache-2.0
"""What a pruning policy sees of a request, and which of its visual tokens stay."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from vllm.distributed import (
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)
from vllm.model_executor.layers.attention import Attention
from vllm.triton_utils import HAS_TRITON

from vllm_lladav.kernels import received
from vllm_lladav.pruning import scores as twin
from vllm_lladav.pruning.params import PruneStage, PruningParams, num_kept
from vllm_lladav.pruning.policies import policy_of
from vllm_lladav.pruning.policy import View
from vllm_lladav.pruning.selection import select_kept


class SeenLayer(NamedTuple):
    """What a layer attends with.

    Attributes:
        attention: vLLM's module.
        query: ``[num_tokens, heads * head_dim]``, rotary embedding applied.
        key: ``[num_tokens, kv_heads * head_dim]``, the same.
        value: of the shape of ``key``.
    """

    attention: Attention
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor


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
        """The image of each, counted from 0: ``[m]``, int64."""

    @property
    def num_images(self) -> int:
        """Images; pruning leaves each of them at least one token."""

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


class Scoring:
    """A request that prunes in this pass: its stages to come, and what the policy
    saw on the way to the next one."""

    def __init__(self, request: PrunedRequest, pruning: PruningParams) -> None:
        self.request = request
        self.stages = list(request.stages())
        self.scores: torch.Tensor | None = None
        self._num_observed = 0
        self._pruning = pruning
        self._policy = policy_of(pruning.policy)

    def is_due(self, layer: int) -> bool:
        return bool(self.stages) and self.stages[0].layer == layer

    def observe(self, layer: int, seen: SeenLayer, first: int) -> None:
        """Let the policy look at a layer. ``first`` is the request's row in the
        batch."""
        if not self.stages or not self._policy.observes(layer, self.stages[0].layer):
            return
        attention, request = seen.attention, self.request
        tokens = slice(first, first + len(request))
        view = View(
            step=self.stages[0].step,
            layer=layer,
            query=seen.query[tokens].unflatten(-1, (attention.num_heads, -1)),
            key=seen.key[tokens].unflatten(-1, (attention.num_kv_heads, -1)),
            scale=attention.impl.scale,
            rows=request.attention_rows(self._pruning.queries),
            visual=request.visual,
            num_kept=self._num_kept,
            seed=request.seed,
            attention_received=(received if HAS_TRITON else twin).attention_received,
        )
        scores = self._policy.score(view)
        self.scores = scores if self.scores is None else self.scores + scores
        self._num_observed += 1

    @property
    def _num_kept(self) -> int:
        request = self.request
        return num_kept(len(request.visual), request.num_images, self.stages[0].rate)

    def select(self, scores: torch.Tensor, num_heads: int) -> torch.Tensor:
        """Which visual tokens stay: ``[k]``, int64, ascending. ``scores`` are sums
        over ``num_heads`` heads and the layers that were observed."""
        self.scores = scores / (num_heads * self._num_observed)
        return select_kept(
            self._policy,
            self.scores,
            self.request.image_ids,
            self.request.num_images,
            self._num_kept,
            self._pruning.tau,
        )

    def prune(self, kept: torch.Tensor, seconds: float) -> torch.Tensor:
        """End the stage that is due: tell the request, and return which of its
        positions stay, ``[n]``, bool."""
        request = self.request
        assert self.scores is not None
        stays = torch.ones(len(request), dtype=torch.bool, device=kept.device)
        stays[request.visual] = False
        stays[request.visual[kept]] = True
        num_left = len(request) - len(request.visual) + len(kept)
        positions = stays.nonzero_static(size=num_left)[:, 0]
        stage = self.stages.pop(0)
        request.keep_visual(Pruned(stage, self.scores, kept, positions, seconds))
        # The next stage of this step looks anew.
        self.scores, self._num_observed = None, 0
        return stays


def select_all(due: Sequence[Scoring], num_heads: int) -> list[torch.Tensor]:
    """Which visual tokens stay, for each request that is due.

    ``num_heads`` are those of this tensor-parallel rank.
    """
    totals = []
    for scoring in due:
        assert scoring.scores is not None
        totals.append(scoring.scores)
    num_ranks = get_tensor_model_parallel_world_size()
    if num_ranks > 1:
        # Every rank scored with its own heads; without the sum they disagree.
        summed = tensor_model_parallel_all_reduce(torch.cat(totals))
        totals = list(summed.split([len(scores) for scores in totals]))
    return [
        scoring.select(scores, num_heads * num_ranks)
        for scoring, scores in zip(due, totals, strict=True)
    ]
