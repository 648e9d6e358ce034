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

from dataclasses import dataclass
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


@dataclass(frozen=True)
class StepPlan:
    """
    Attributes:
        params: the request.
        prompt_len: prompt tokens, visual tokens included.
        images: visual tokens of each image.
    """

    params: DenoisingParams
    prompt_len: int
    images: tuple[int, ...] = ()

    @property
    def num_steps(self) -> int:
        return self.params.steps

    @property
    def num_visual(self) -> int:
        """Visual tokens before anything is pruned."""
        return sum(self.images)

    @property
    def follows_blocks(self) -> bool:
        """Whether what a step computes depends on the block and on the stop. Both are
        up to the canvas, so the scheduler is told after every step."""
        return self.params.cache in ("prefix", "dual")

    def num_slots(self, num_visual: int) -> int:
        """KV slots of a sequence while ``num_visual`` visual tokens are left: prompt,
        canvas and suffix."""
        num_pruned = self.num_visual - num_visual
        return self.prompt_len - num_pruned + self.params.num_tail_tokens

    def num_held_slots(self, num_visual: int, block_size: int) -> int:
        """KV slots up to the last one that the request uses. Each of its sequences
        begins with a block."""
        num_slots = self.num_slots(num_visual)
        num_blocks = -(-num_slots // block_size)
        return (self.params.num_sequences - 1) * num_blocks * block_size + num_slots

    def computed(self, index: StepIndex, num_visual: int) -> Span:
        """Positions that the step computes, of every sequence. It reads the K/V of
        the others from the KV blocks, as the last step that computed them left it."""
        num_slots = self.num_slots(num_visual)
        if self.is_full(index):
            return Span(0, num_slots)
        prompt_len = num_slots - self.params.num_tail_tokens
        if self.params.cache == "prompt":
            return Span(prompt_len, num_slots)
        block_start = prompt_len + index.block * self.params.block_length
        end = num_slots
        if self.params.cache == "dual":
            end = block_start + self.params.block_length
        if index.stop is not None:
            # What is behind the stop is cut off, and read as it is.
            end = min(end, max(prompt_len + index.stop, block_start + 1))
        return Span(block_start, end)

    def is_full(self, index: StepIndex) -> bool:
        """Whether the step computes everything: with a cache, every
        ``refresh_interval`` steps (``prefix`` and ``dual`` count from the start of
        the block), and where visual tokens are pruned."""
        count = index.step_in_block if self.follows_blocks else index.step
        is_refresh = count % self.params.refresh_interval == 0
        return (
            self.params.cache == "none" or is_refresh or bool(self.stages(index.step))
        )

    def stages(self, step: int) -> tuple[PruneStage, ...]:
        """What is pruned in a step."""
        pruning = self.params.pruning
        if pruning is None or self.num_visual < max(pruning.min_visual_tokens, 1):
            return ()
        return pruning.stages_of(step)

    def visual_after(self, step: int, num_visual: int) -> int:
        """Visual tokens that are left after a step that ``num_visual`` entered (at
        most, if pruning is adaptive)."""
        for stage in self.stages(step):
            num_visual = num_kept(num_visual, len(self.images), stage.rate)
        return num_visual
