# SPDX-License-Identifier: Apache-2.0
"""The step plan: what every denoising step of a request computes.

A pure value. The scheduler and the workers derive it from the same parameters,
so that no message between them is needed for tensor parallelism, asynchronous
scheduling or preemption. A request may end before its plan does (a stop, a
canvas without masks); it never runs longer.
"""

from dataclasses import dataclass

from vllm_lladav.denoising.params import DenoisingParams


@dataclass(frozen=True)
class StepPlan:
    """Steps are counted from 0.

    Attributes:
        params: the request.
        prompt_len: prompt tokens, visual tokens included.
    """

    params: DenoisingParams
    prompt_len: int

    @property
    def num_steps(self) -> int:
        return self.params.steps

    @property
    def num_slots(self) -> int:
        """KV slots that the request holds: prompt, canvas and suffix."""
        return self.prompt_len + self.params.num_tail_tokens

    def num_computed(self, step: int) -> int:
        """Leading tokens whose K/V the step reads instead of computing them."""
        assert 0 <= step < self.num_steps
        return 0

    def query_len(self, step: int) -> int:
        """Tokens that run through the model in the step."""
        return self.num_slots - self.num_computed(step)
