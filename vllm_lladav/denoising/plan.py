# SPDX-License-Identifier: Apache-2.0
"""The step plan: what every denoising step of a request computes.

Steps, blocks and steps in a block are counted from 0. A pure value: the scheduler and
the workers derive it from the same parameters, so that no message between them is
needed for tensor parallelism, asynchronous scheduling or preemption. A request may end
before its plan does (a stop, a canvas without masks); it never runs longer. Two things
only the worker knows: when a block ends and where a stop stands, which matters to
caches that follow blocks, and how much adaptive pruning drops, of which the plan knows
the least.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from vllm_lladav.denoising.params import DenoisingParams
from vllm_lladav.pruning.params import PruneStage, num_kept


class StepIndex(NamedTuple):
    """Which step of a request, all counted from 0.

    Attributes:
        step: of the request.
        block: of the canvas that is worked on.
        step_in_block: of that block.
        stop: canvas position at which the answer ends, once a stop stands there.
    """

    step: int
    block: int
    step_in_block: int
    stop: int | None = None


class Span(NamedTuple):
    """Positions ``[first, end)`` of a request."""

    first: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.first


class Segment(NamedTuple):
    """Layers of a step that see the same tokens.

    Attributes:
        layers: counted from 1.
        num_visual: visual tokens that are left.
        num_slots: KV slots of a sequence: the tokens that a row attends to.
        num_rows: tokens that are computed, of all sequences.
        stage: prunes after the last of the layers; None if the step ends there.
    """

    layers: range
    num_visual: int
    num_slots: int
    num_rows: int
    stage: PruneStage | None


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a request, as ``num_visual`` visual tokens enter it.

    Attributes:
        plan: whose step it is.
        index: which of them.
        num_visual: visual tokens that are left of the request's.
        num_slots: KV slots of a sequence: prompt, canvas and suffix.
        is_full: whether everything is computed: without a cache, at a refresh, and
            where visual tokens are pruned.
        computed: positions that are computed, of every sequence. The K/V of the
            others is read from the KV blocks, as the last step that computed them
            left it.
        stages: what is pruned on the way, in the order of the layers.
    """

    plan: "StepPlan" = field(repr=False)
    index: StepIndex
    num_visual: int
    num_slots: int
    is_full: bool
    computed: Span
    stages: tuple[PruneStage, ...] = ()

    @property
    def num_rows(self) -> int:
        """Tokens that are computed, of all sequences."""
        return self.plan.params.num_sequences * self.computed.length

    @property
    def num_visual_after(self) -> int:
        """Visual tokens that are left behind the step; at most, if pruning is
        adaptive."""
        num_visual = self.num_visual
        for stage in self.stages:
            num_visual = self.plan.num_kept(num_visual, stage)
        return num_visual

    @property
    def layout(self) -> Span:
        """Positions from which transfers are chosen: all of the sequence, as in the
        official code, or what is computed, as in Fast-dLLM."""
        return self.computed if self.plan.follows_blocks else Span(0, self.num_slots)

    def num_held_slots(self, block_size: int) -> int:
        """KV slots up to the last one that the request uses. Each of its sequences
        begins with a KV block."""
        num_kv_blocks = -(-self.num_slots // block_size)
        num_others = self.plan.params.num_sequences - 1
        return num_others * num_kv_blocks * block_size + self.num_slots

    def segments(self, num_layers: int) -> Iterator[Segment]:
        """The step from prune stage to prune stage, in a decoder of ``num_layers``."""
        step, first = self, 1
        for stage in self.stages:
            layers = range(first, stage.layer + 1)
            yield Segment(layers, step.num_visual, step.num_slots, step.num_rows, stage)
            step, first = step.pruned(stage), stage.layer + 1
        layers = range(first, num_layers + 1)
        yield Segment(layers, step.num_visual, step.num_slots, step.num_rows, None)

    def pruned(self, stage: PruneStage) -> "Step":
        """The same step behind ``stage``, one of its stages."""
        return self.plan.at(self.index, self.plan.num_kept(self.num_visual, stage))


def transfer_count(num_masks: int, steps: int, step: int) -> int:
    """How many positions step ``step`` (from 0) of ``steps`` transfers.

    ``num_masks // steps``; the remainder goes one each to the first steps (12 masks in
    5 steps: 3, 3, 2, 2, 2), so that steps past the masks transfer nothing.
    """
    share, remainder = divmod(num_masks, steps)
    return share + (step < remainder)


@dataclass(frozen=True)
class StepPlan:
    """
    Attributes:
        params: the request.
        prompt_len: prompt tokens, visual tokens included.
        visual_lengths: visual tokens of each image.
    """

    params: DenoisingParams
    prompt_len: int
    visual_lengths: tuple[int, ...] = ()

    @cached_property
    def num_visual(self) -> int:
        """Visual tokens before anything is pruned."""
        return sum(self.visual_lengths)

    @cached_property
    def follows_blocks(self) -> bool:
        """Whether what a step computes depends on the block and on the stop. Both are
        up to the canvas, so the scheduler is told after every step."""
        return self.params.follows_blocks

    @property
    def first(self) -> Step:
        """The first step."""
        return self.at(StepIndex(0, 0, 0), self.num_visual)

    def at(self, index: StepIndex, num_visual: int) -> Step:
        """The step ``index``, as ``num_visual`` visual tokens enter it."""
        params = self.params
        prompt_len = self.prompt_len - (self.num_visual - num_visual)
        num_slots = prompt_len + params.num_tail_tokens
        stages = self._stages(index.step)
        is_full = bool(stages) or self._is_refresh(index)
        if is_full:
            computed = Span(0, num_slots)
        elif params.cache == "prompt":
            computed = Span(prompt_len, num_slots)
        else:
            computed = self._behind_prefix(index, prompt_len, num_slots)
        return Step(self, index, num_visual, num_slots, is_full, computed, stages)

    def full_rows_left(self, index: StepIndex, num_visual: int) -> int:
        """Tokens that all full steps from ``index`` on compute, which ``num_visual``
        visual tokens enter, if every block takes all its steps and nothing stops the
        answer.

        Arithmetic: the scheduler compares requests by it.
        """
        first, end, period = self._places_from(index)
        rows = 0
        for step in self._pruning_steps(index.step):
            place = first + step - index.step
            if place >= end:
                break
            num_refreshes = self._refreshes_before(place, period)
            num_full = num_refreshes - self._refreshes_before(first, period) + 1
            rows += num_full * self._num_full_rows(num_visual)
            for stage in self._stages(step):
                num_visual = self.num_kept(num_visual, stage)
            first, index = place + 1, index._replace(step=step + 1)
        num_full = self._refreshes_before(end, period)
        num_full -= self._refreshes_before(first, period)
        return rows + num_full * self._num_full_rows(num_visual)

    def _places_from(self, index: StepIndex) -> tuple[int, int, int]:
        """The next step's place and the one behind the last step, both counted from the
        start of what refreshes are counted from, and the steps until that comes again:
        the blocks, or the whole request."""
        params = self.params
        per_block = min(params.steps_per_block, params.block_length)
        if not self.follows_blocks:
            return index.step, per_block * params.num_blocks, params.steps
        num_blocks = params.num_blocks - index.block
        return index.step_in_block, per_block * num_blocks, per_block

    def _refreshes_before(self, place: int, period: int) -> int:
        interval = 1 if self.params.cache == "none" else self.params.refresh_interval
        num_periods, rest = divmod(place, period)
        return num_periods * -(-period // interval) + -(-rest // interval)

    def _num_full_rows(self, num_visual: int) -> int:
        num_slots = self.prompt_len - (self.num_visual - num_visual)
        num_slots += self.params.num_tail_tokens
        return self.params.num_sequences * num_slots

    def _pruning_steps(self, first: int) -> list[int]:
        """Those that prune, from ``first`` on."""
        pruning = self.params.pruning
        stages = () if pruning is None else pruning.stages
        steps = sorted({stage.step - 1 for stage in stages})
        return [step for step in steps if step >= first and self._stages(step)]

    def num_kept(self, num_visual: int, stage: PruneStage) -> int:
        """Visual tokens that ``stage`` leaves of ``num_visual``; at most, if pruning
        is adaptive."""
        return num_kept(num_visual, len(self.visual_lengths), stage.rate)

    def _is_refresh(self, index: StepIndex) -> bool:
        """With a cache, every ``refresh_interval`` steps; ``prefix`` and ``dual``
        count from the start of the block."""
        if self.params.cache == "none":
            return True
        count = index.step_in_block if self.follows_blocks else index.step
        return count % self.params.refresh_interval == 0

    def _behind_prefix(self, index: StepIndex, prompt_len: int, end: int) -> Span:
        """From the current block on, or that block only."""
        first = prompt_len + index.block * self.params.block_length
        if self.params.cache == "dual":
            end = first + self.params.block_length
        if index.stop is not None:
            # What is behind the stop is cut off, and read as it is.
            end = min(end, max(prompt_len + index.stop, first + 1))
        return Span(first, end)

    def _stages(self, step: int) -> tuple[PruneStage, ...]:
        pruning = self.params.pruning
        if pruning is None or self.num_visual < max(pruning.min_visual_tokens, 1):
            return ()
        return pruning.stages_of(step)
