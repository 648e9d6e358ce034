# SPDX-License-Identifier: Apache-2.0
"""Settings run one after the other, measured, and compared."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from vllm_lladav.tools.eval.questions import Question
from vllm_lladav.tools.eval.results import Answer, Run
from vllm_lladav.tools.eval.scoring import (
    Accuracy,
    accuracy,
    accuracy_by,
    is_right,
    normalise,
)
from vllm_lladav.tools.eval.settings import Setting

if TYPE_CHECKING:
    from vllm_lladav.tools.eval.cost import CostModel


class Target(Protocol):
    """What answers questions: an engine or a server."""

    def ask(self, questions: Sequence[Question], setting: Setting) -> list[Answer]:
        """Answers in the order of the questions."""


def run_setting(
    target: Target,
    questions: Sequence[Question],
    setting: Setting,
    warm_up: int = 0,
    repeats: int = 1,
) -> Run:
    """Ask all questions with one setting.

    Args:
        warm_up: number of first questions that are asked before and not measured.
        repeats: how often all questions are asked and timed.
    """
    assert repeats > 0
    if warm_up:
        target.ask(questions[:warm_up], setting)
    seconds, answers = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        answers.append(target.ask(questions, setting))
        seconds.append(time.perf_counter() - start)
    return Run(setting, tuple(seconds), tuple(answers[0]))


@dataclass(frozen=True)
class Summary:
    """Accuracy and cost of one setting.

    Attributes:
        run: its answers and times.
        right: whether each answer is right.
        accuracy: over all questions.
        by_task, by_kind: accuracy by the questions' tasks and kinds.
        agreement: share of the answers that are those of the baseline, right or wrong.
        seconds: wall time of all questions; the median of the repeats.
        steps: denoising steps per request, on average.
        tokens_per_step: tokens of all answers per denoising step.
        visual_tokens, visual_tokens_kept: per request, on average.
        flops: model operations per request, on average; None without a checkpoint.
        flops_are_estimated: whether they are for some request.
    """

    run: Run
    right: tuple[bool, ...]
    accuracy: Accuracy
    by_task: dict[str, Accuracy]
    by_kind: dict[str, Accuracy]
    agreement: float
    seconds: float
    steps: float
    tokens_per_step: float
    visual_tokens: float
    visual_tokens_kept: float
    flops: float | None
    flops_are_estimated: bool

    @property
    def label(self) -> str:
        """The setting's name, such as ``dual``."""
        return self.run.setting.label


def summarise(
    run: Run,
    questions: Sequence[Question],
    baseline: Run,
    cost: "CostModel | None" = None,
) -> Summary:
    """Score a run's answers, and compute what they cost.

    Args:
        baseline: the exact setting's run, with whose answers these are compared.
        cost: the checkpoint's; None if it is not known.
    """
    answers = run.answers
    right = tuple(
        is_right(answer.text, question.answer)
        for answer, question in zip(answers, questions, strict=True)
    )
    agreement = statistics.fmean(
        normalise(answer.text) == normalise(exact.text)
        for answer, exact in zip(answers, baseline.answers, strict=True)
    )
    flops, are_estimated = None, False
    if cost is not None:
        from vllm_lladav.tools.eval.cost import is_estimate

        flops = statistics.fmean(
            cost.flops(run.setting, question, answer)
            for answer, question in zip(answers, questions, strict=True)
        )
        are_estimated = any(is_estimate(run.setting, answer) for answer in answers)
    num_tokens = sum(answer.num_tokens for answer in answers)
    return Summary(
        run=run,
        right=right,
        accuracy=accuracy(right),
        by_task=accuracy_by((question.task for question in questions), right),
        by_kind=accuracy_by((question.kind for question in questions), right),
        agreement=agreement,
        seconds=run.median_seconds,
        steps=statistics.fmean(answer.steps for answer in answers),
        tokens_per_step=num_tokens / max(sum(answer.steps for answer in answers), 1),
        visual_tokens=statistics.fmean(answer.visual_tokens for answer in answers),
        visual_tokens_kept=statistics.fmean(a.visual_tokens_kept for a in answers),
        flops=flops,
        flops_are_estimated=are_estimated,
    )


@dataclass(frozen=True)
class Choice:
    """The cheapest settings that keep enough of the baseline's accuracy.

    Attributes:
        keep: share of the baseline's accuracy that had to be kept.
        by_flops: None if the operations are not known.
    """

    keep: float
    by_flops: Summary | None
    by_seconds: Summary


def choose(summaries: Sequence[Summary], keep: float) -> Choice:
    """Find the cheapest settings that keep enough accuracy.

    Args:
        summaries: the first one is the baseline, which always is accurate enough.
        keep: share of the baseline's right answers that must be kept, 0 to 1.
    """
    baseline = summaries[0]
    # Counts, not shares: no rounding at the limit, other than that of ``keep``.
    least = keep * baseline.accuracy.num_right - 1e-9
    enough = [s for s in summaries if s.accuracy.num_right >= least]
    counted = [summary for summary in enough if summary.flops is not None]
    return Choice(
        keep=keep,
        by_flops=min(counted, key=lambda s: s.flops or 0.0, default=None),
        by_seconds=min(enough, key=lambda s: s.seconds),
    )
