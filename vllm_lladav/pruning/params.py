# SPDX-License-Identifier: Apache-2.0
"""The validated pruning schedule of one request."""

import math
from dataclasses import dataclass
from typing import Any, Self

from vllm_lladav.pruning.policies import POLICIES, policy_of

QUERIES = ("all", "answer", "last")
POSITIONS = ("original", "compact")


@dataclass(frozen=True)
class PruneStage:
    """One cut: in denoising step ``step``, after decoder layer ``layer``, drop the
    share ``rate`` of the visual tokens that are still there.

    Steps and layers are counted from 1. Layers 1 to ``layer`` see all tokens;
    ``layer`` = number of layers cuts after the whole step.
    """

    step: int
    layer: int
    rate: float


@dataclass(frozen=True)
class PruningParams:
    """What is dropped, when, and by which ranking.

    Attributes:
        stages: in order of step and layer, at least one.
        policy: how visual tokens are ranked (:mod:`vllm_lladav.pruning.policies`).
        queries: rows whose attention counts: ``all`` positions, the ``answer``
            (canvas positions that are still masked), or the ``last`` position.
        positions: of kept tokens in later steps: ``original`` or ``compact``
            (renumbered without gaps).
        min_visual_tokens: a request with fewer is left alone.
        tau: share of the attention mass that an adaptive policy keeps.
    """

    stages: tuple[PruneStage, ...]
    policy: str = "fastv"
    queries: str = "all"
    positions: str = "original"
    min_visual_tokens: int = 0
    tau: float = 0.95

    def __post_init__(self) -> None:
        assert self.stages
        assert all(s.step >= 1 and s.layer >= 1 for s in self.stages), self
        assert all(0 < s.rate < 1 for s in self.stages), self
        order = [(stage.step, stage.layer) for stage in self.stages]
        assert order == sorted(set(order)), self
        assert self.policy in POLICIES, self
        assert self.queries in QUERIES, self
        assert self.positions in POSITIONS, self
        assert 0 < self.tau <= 1, self

    @property
    def is_adaptive(self) -> bool:
        """Whether only the worker knows how many tokens are dropped."""
        return policy_of(self.policy).is_adaptive

    @property
    def is_random(self) -> bool:
        """Whether the request needs a seed to be pruned."""
        return policy_of(self.policy).is_random

    def stages_of(self, step: int) -> tuple[PruneStage, ...]:
        """Stages of a denoising step, counted from 0 as in the step plan."""
        return tuple(stage for stage in self.stages if stage.step == step + 1)

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> Self:
        """The inverse of ``dataclasses.asdict``."""
        stages = tuple(PruneStage(**stage) for stage in values["stages"])
        return cls(**{**values, "stages": stages})


def num_kept(num_visual: int, num_images: int, rate: float) -> int:
    """Visual tokens that a stage leaves of ``num_visual``: ``floor(rate * n)`` are
    dropped, over all images together, but each of ``num_images`` keeps one."""
    return max(num_visual - math.floor(rate * num_visual), num_images)


def parse_stages(text: str) -> tuple[PruneStage, ...]:
    """Read ``"step:layer:rate,step:layer:rate"``, such as ``"1:16:0.5,8:16:0.5"``.

    Raises:
        ValueError: saying what is wrong with which stage.
    """
    stages: list[PruneStage] = []
    for part in text.split(","):
        try:
            step, layer, rate = part.split(":")
            stage = PruneStage(int(step), int(layer), float(rate))
        except ValueError:
            raise ValueError(f"{part.strip()!r} is not step:layer:rate") from None
        if stage.step < 1 or stage.layer < 1 or not 0 < stage.rate < 1:
            raise ValueError(
                f"{part.strip()!r} needs a step and a layer of at least 1 and a rate "
                "above 0 and below 1"
            )
        if stages and (stage.step, stage.layer) <= (stages[-1].step, stages[-1].layer):
            raise ValueError(f"{part.strip()!r} must come after the stage before it")
        stages.append(stage)
    return tuple(stages)
