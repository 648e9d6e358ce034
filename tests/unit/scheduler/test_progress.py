# SPDX-License-Identifier: Apache-2.0
"""How far the scheduler takes a request to be, told of dispatches and reports."""

from typing import Any

import pytest

from vllm_lladav.denoising.marks import PruneReport, StepReport
from vllm_lladav.denoising.params import DenoisingParams
from vllm_lladav.denoising.plan import Span, StepIndex, StepPlan
from vllm_lladav.pruning.params import PruneStage, PruningParams
from vllm_lladav.scheduler.progress import Progress


def start(**changes: Any) -> Progress:
    """A prompt of 20 with an image of 10, a canvas of [20, 28) in blocks of 4."""
    params = DenoisingParams(
        gen_length=8,
        block_length=4,
        steps=8,
        temperature=0.0,
        remasking="low_confidence",
        seed=None,
        max_answer_tokens=8,
        refresh_interval=25,
        **changes,
    )
    return Progress(StepPlan(params, 20, (10,)), arrival=7, iteration=3)


def figures(progress: Progress) -> dict[str, Any]:
    return progress.figures(num_tokens=3)["lladav"]


def test_advances_at_dispatch():
    progress = start(cache="prompt")
    assert progress.step.is_full and progress.is_ready
    assert progress.waits_since == 3
    assert progress.dispatch(5) == 0
    assert progress.waits_since == 5
    assert progress.step.index == StepIndex(1, 0, 1)
    assert progress.step.computed == Span(20, 28)
    # All steps may be under way before anything is back.
    assert progress.is_ready
    assert figures(progress)["denoising_steps"] == 0
    progress.report(StepReport())
    assert progress.step.index == StepIndex(1, 0, 1)
    assert figures(progress)["denoising_steps"] == 1


def test_ends_with_the_plan():
    progress = start()
    for iteration in range(8):
        assert progress.is_ready
        progress.dispatch(iteration)
    assert not progress.has_steps and not progress.is_ready


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_waits_for_the_block(cache: str):
    """When a block ends is up to the canvas."""
    progress = start(cache=cache)
    progress.dispatch(4)
    assert not progress.is_ready
    progress.report(StepReport(block=0))
    assert progress.is_ready
    assert progress.step.index == StepIndex(1, 0, 1)
    progress.dispatch(5)
    progress.report(StepReport(block=1))
    assert progress.step.index == StepIndex(2, 1, 0)
    assert progress.step.is_full


def test_full_steps_to_come():
    """28 tokens at the start of both blocks; where one ends early, its refresh is not
    needed any more."""
    progress = start(cache="dual")
    assert progress.arrival == 7
    assert progress.full_rows_left == 2 * 28
    progress.dispatch(4)
    assert progress.full_rows_left == 28
    progress.report(StepReport(block=1))
    assert progress.full_rows_left == 28
    progress.dispatch(5)
    assert progress.full_rows_left == 0
    assert progress.has_steps and not progress.is_ready


def test_learns_of_the_stop():
    progress = start(cache="dual")
    progress.dispatch(4)
    progress.report(StepReport(block=0, stop=2))
    assert progress.step.computed == Span(20, 22)


STAGES = (PruneStage(2, 1, 0.25), PruneStage(2, 3, 0.5))


def test_says_what_pruning_drops():
    """10 visual tokens, 2 of which go, and then 4 of 8, in the second step."""
    progress = start(cache="prompt", pruning=PruningParams(STAGES))
    assert progress.dispatch(4) == 0
    assert progress.step.is_full
    assert progress.dispatch(5) == 6
    assert progress.is_ready
    assert progress.step.num_visual == 4
    assert progress.step.computed == Span(14, 22)
    # The report of a plain policy says what is known.
    assert progress.report(StepReport()) == 0
    assert progress.report(StepReport(pruned=PruneReport(4, 1))) == 0
    assert figures(progress)["visual_tokens"] == 10
    assert figures(progress)["visual_tokens_kept"] == 4


def test_waits_for_what_adaptive_pruning_drops():
    pruning = PruningParams(STAGES, "adaptive")
    progress = start(cache="prompt", pruning=pruning)
    progress.dispatch(4)
    assert progress.is_ready
    assert progress.dispatch(5) == 6
    assert not progress.is_ready
    # The output of the first step, which pruned nothing, is not what it waits for.
    assert progress.report(StepReport()) == 0
    assert not progress.is_ready
    assert progress.report(StepReport(pruned=PruneReport(1, 1))) == 3
    assert progress.is_ready
    assert progress.step.num_visual == 1
    assert progress.step.computed == Span(11, 19)


def test_figures_of_the_client():
    progress = start()
    for iteration in range(2):
        progress.dispatch(iteration)
        progress.report(StepReport())
    progress.count_returned(2)
    progress.count_returned(3)
    assert figures(progress) == {
        "denoising_steps": 2,
        "tokens_per_step": 1.5,
        "visual_tokens": 10,
        "visual_tokens_kept": 10,
        "kv_blocks_returned": 5,
    }
    assert progress.tokens_per_step(8) == 4


def test_nobody_else_changes_it():
    progress: Any = start()
    for name in (
        "plan",
        "arrival",
        "step",
        "full_rows_left",
        "waits_since",
        "is_ready",
    ):
        with pytest.raises(AttributeError):
            setattr(progress, name, getattr(progress, name))
