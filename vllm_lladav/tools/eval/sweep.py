# SPDX-License-Identifier: Apache-2.0
"""Settings run one after the other, measured, and compared."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

from vllm_lladav.tools.checkpoint import Checkpoint
from vllm_lladav.tools.eval.answers import Answer, Target
from vllm_lladav.tools.eval.cost import flops, is_estimate
from vllm_lladav.tools.eval.questions import Question
from vllm_lladav.tools.eval.scoring import Accuracy, accuracy_by, is_same
from vllm_lladav.tools.eval.settings import Setting


@dataclass(frozen=True)
class Run:
    """The answers to all questions with one setting.

    Attributes:
        seconds: wall time of each repeat, from the first request to the last answer.
        answers: those of the first repeat, in the order of the questions.
    """

    setting: Setting
    seconds: tuple[float, ...]
    answers: tuple[Answer, ...]


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

    @property
    def accuracy(self) -> Accuracy:
        """Over all questions."""
        return Accuracy(sum(self.right), len(self.right))


def summarise(
    run: Run,
    questions: Sequence[Question],
    baseline: Run,
    checkpoint: Checkpoint | None = None,
) -> Summary:
    """Score a run's answers, and compute what they cost.

    Args:
        baseline: the exact setting's run, with whose answers these are compared.
        checkpoint: None if it is not known.
    """
    setting, answers = run.setting, run.answers
    asked = list(zip(questions, answers, strict=True))
    right = tuple(is_same(answer.text, question.answer) for question, answer in asked)
    num_tokens = sum(answer.num_tokens for answer in answers)
    num_steps = sum(answer.steps for answer in answers)
    mean_flops, are_estimated = None, False
    if checkpoint is not None:
        mean_flops = fmean(flops(checkpoint, setting, *pair) for pair in asked)
        are_estimated = any(is_estimate(setting, answer) for answer in answers)
    return Summary(
        run=run,
        right=right,
        by_task=accuracy_by((question.task for question in questions), right),
        by_kind=accuracy_by((question.kind for question in questions), right),
        agreement=fmean(
            is_same(answer.text, exact.text)
            for answer, exact in zip(answers, baseline.answers, strict=True)
        ),
        seconds=median(run.seconds),
        steps=num_steps / len(answers),
        tokens_per_step=num_tokens / max(num_steps, 1),
        visual_tokens=fmean(answer.visual_tokens for answer in answers),
        visual_tokens_kept=fmean(answer.visual_tokens_kept for answer in answers),
        flops=mean_flops,
        flops_are_estimated=are_estimated,
    )


def cheapest(
    summaries: Sequence[Summary], keep: float
) -> tuple[Summary | None, Summary]:
    """The cheapest settings that keep enough of the first one's accuracy: by
    operations (None if they are not known), and by wall time.

    Args:
        summaries: the first one is the baseline, which always is accurate enough.
        keep: share of the baseline's right answers that must be kept, 0 to 1.
    """
    # Counts, not shares: no rounding at the limit, other than that of ``keep``.
    least = keep * summaries[0].accuracy.num_right - 1e-9
    enough = [s for s in summaries if s.accuracy.num_right >= least]
    counted = [summary for summary in enough if summary.flops is not None]
    return (
        min(counted, key=lambda s: s.flops or 0.0, default=None),
        min(enough, key=lambda s: s.seconds),
    )
