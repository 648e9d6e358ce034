# SPDX-License-Identifier: Apache-2.0
"""What an engine or a server gives back."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from vllm_lladav.tools.eval.settings import Setting
from vllm_lladav.tools.flops import StepMasks


@dataclass(frozen=True)
class Answer:
    """To one question.

    Attributes:
        text: the answer.
        num_tokens: of the answer, without the end token.
        is_ended: whether an end token bounded it, rather than the canvas.
        prompt_len: prompt tokens, visual tokens included.
        steps: denoising steps that ran.
        visual_tokens: of the picture.
        visual_tokens_kept: at the end.
        masks: before each of the steps; None if they were not observed.
    """

    text: str
    num_tokens: int
    is_ended: bool
    prompt_len: int
    steps: int
    visual_tokens: int
    visual_tokens_kept: int
    masks: tuple[StepMasks, ...] | None = None

    @classmethod
    def with_report(cls, params: Mapping[str, Any] | None, **values: Any) -> Self:
        """Read ``kv_transfer_params`` of a response.

        Raises:
            ValueError: if the report of this plugin is not in it.
        """
        try:
            report = (params or {})["lladav"]
            return cls(
                steps=report["denoising_steps"],
                visual_tokens=report["visual_tokens"],
                visual_tokens_kept=report["visual_tokens_kept"],
                **values,
            )
        except (KeyError, TypeError):
            raise ValueError(
                'the response has no kv_transfer_params["lladav"]: is it LLaDA-V, '
                "served with vllm-lladav?"
            ) from None


@dataclass(frozen=True)
class Run:
    """All questions with one setting.

    Attributes:
        seconds: wall time of each repeat, from the first request to the last answer.
        answers: of the first repeat, in the order of the questions.
    """

    setting: Setting
    seconds: tuple[float, ...]
    answers: tuple[Answer, ...]

    @property
    def median_seconds(self) -> float:
        return statistics.median(self.seconds)
