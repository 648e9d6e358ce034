# SPDX-License-Identifier: Apache-2.0
"""Answers to the questions of a sweep, and what gives them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from vllm_lladav.model.flops import StepMasks
from vllm_lladav.tools.eval.questions import Question
from vllm_lladav.tools.eval.settings import Setting


@dataclass(frozen=True)
class Answer:
    """The answer to one question, and what the engine says of the request.

    Attributes:
        text: the answer.
        num_tokens: tokens of the answer, without the end token.
        is_ended: whether an end token bounded it, rather than the canvas.
        prompt_len: prompt tokens, visual tokens included.
        steps: denoising steps that ran.
        visual_tokens: visual tokens of the picture.
        visual_tokens_kept: those that pruning left until the end.
        masks: masks before each of the steps; None if steps were not observed.
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
        """An answer with what ``kv_transfer_params`` of a response reports.

        Args:
            params: the response's ``kv_transfer_params``.
            values: all other attributes.

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


class Target(Protocol):
    """What answers questions: an engine or a server."""

    def ask(self, questions: Sequence[Question], setting: Setting) -> list[Answer]:
        """Answers in the order of the questions."""
