# SPDX-License-Identifier: Apache-2.0
"""The step plan: what every denoising step of a request computes.

A pure value. The scheduler and the workers derive it from the same parameters,
so that no message between them is needed for tensor parallelism, asynchronous
scheduling or preemption. A request may end before its plan does (a stop, a
canvas without masks); it never runs longer. Only adaptive pruning drops a number
of tokens that the plan does not know; it knows the least number.
"""

from dataclasses import dataclass

from vllm_lladav.denoising.params import DenoisingParams
from vllm_lladav.pruning.params import PruneStage, num_kept


@dataclass(frozen=True)
class StepPlan:
    """Steps are counted from 0.

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

    def query_len(self, num_visual: int) -> int:
        """Tokens that run through the model, and KV slots that the request holds,
        while ``num_visual`` visual tokens are left: prompt, canvas and suffix."""
        num_pruned = self.num_visual - num_visual
        return self.prompt_len - num_pruned + self.params.num_tail_tokens

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
