# SPDX-License-Identifier: Apache-2.0
"""Steps of a plan, by hand.

A prompt of 20 tokens with images of 4 and 6, a canvas of 12 in blocks of 4, a suffix
of 2: 34 positions, of which the canvas is [20, 32).
"""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_lladav.denoising.params import DenoisingParams
from vllm_lladav.denoising.plan import (
    Segment,
    Span,
    Step,
    StepIndex,
    StepPlan,
    transfer_count,
)
from vllm_lladav.model.flops import steps_of
from vllm_lladav.options.options import CACHES
from vllm_lladav.pruning.params import PruneStage, PruningParams

LAYERS = 4
FULL = Span(0, 34)


def make_plan(lengths: tuple[int, ...] = (4, 6), **changes: Any) -> StepPlan:
    params = DenoisingParams(
        gen_length=12,
        block_length=4,
        steps=12,
        temperature=0.0,
        remasking="low_confidence",
        seed=None,
        max_answer_tokens=12,
        suffix_token_ids=(7, 8),
        **changes,
    )
    return StepPlan(params, 20, lengths)


def at(plan: StepPlan, step: int, stop: int | None = None, num_visual: int = 10):
    """Four steps in each block."""
    return plan.at(StepIndex(step, step // 4, step % 4, stop), num_visual)


def spans(plan: StepPlan) -> list[Span]:
    return [at(plan, step).computed for step in range(12)]


PROMPT = [FULL, *[Span(20, 34)] * 11]
PREFIX = [
    *[FULL, Span(20, 34), Span(20, 34), Span(20, 34)],
    *[FULL, Span(24, 34), Span(24, 34), Span(24, 34)],
    *[FULL, Span(28, 34), Span(28, 34), Span(28, 34)],
]
DUAL = [
    *[FULL, Span(20, 24), Span(20, 24), Span(20, 24)],
    *[FULL, Span(24, 28), Span(24, 28), Span(24, 28)],
    *[FULL, Span(28, 32), Span(28, 32), Span(28, 32)],
]


@pytest.mark.parametrize(
    "cache, expected",
    [("none", [FULL] * 12), ("prompt", PROMPT), ("prefix", PREFIX), ("dual", DUAL)],
)
def test_spans(cache: str, expected: list[Span]):
    plan = make_plan(cache=cache, refresh_interval=25)
    assert spans(plan) == expected
    assert [at(plan, step).is_full for step in range(12)] == [
        span == FULL for span in expected
    ]


@pytest.mark.parametrize(
    "cache, full",
    [
        ("none", set(range(12))),
        ("prompt", {0, 3, 6, 9}),
        # They count from the start of the block.
        ("prefix", {0, 3, 4, 7, 8, 11}),
        ("dual", {0, 3, 4, 7, 8, 11}),
    ],
)
def test_refreshes(cache: str, full: set[int]):
    plan = make_plan(cache=cache, refresh_interval=3)
    assert {step for step in range(12) if at(plan, step).is_full} == full


@pytest.mark.parametrize(
    "cache, stop, expected",
    [
        # Behind the stop nothing is computed.
        ("prefix", 7, Span(24, 27)),
        ("dual", 7, Span(24, 27)),
        # It stands behind the block.
        ("prefix", 10, Span(24, 30)),
        ("dual", 10, Span(24, 28)),
        # Before it: a step computes one position at least.
        ("prefix", 2, Span(24, 25)),
        ("dual", 2, Span(24, 25)),
        ("dual", 4, Span(24, 25)),
        # Official transfers are chosen from all positions.
        ("prompt", 7, Span(20, 34)),
        ("none", 7, FULL),
    ],
)
def test_stop_cuts_cached_steps(cache: str, stop: int, expected: Span):
    plan = make_plan(cache=cache, refresh_interval=25)
    assert at(plan, 5, stop).computed == expected
    assert at(plan, 0, stop).computed == FULL


@pytest.mark.parametrize(
    "cache, expected",
    [
        ("none", FULL),
        ("prompt", FULL),
        ("prefix", Span(24, 34)),
        ("dual", Span(24, 28)),
    ],
)
def test_transfers_are_chosen_from(cache: str, expected: Span):
    assert at(make_plan(cache=cache, refresh_interval=25), 5).layout == expected


def test_guidance_doubles_rows_and_slots():
    plan = make_plan(cache="dual", refresh_interval=25, cfg_scale=0.5)
    assert (at(plan, 0).num_rows, at(plan, 1).num_rows) == (68, 8)
    assert at(plan, 1).computed == Span(20, 24)
    # 34 slots are 5 KV blocks of 8; the twin begins with the sixth.
    assert at(plan, 1).num_held_slots(8) == 40 + 34
    assert at(plan, 1).num_held_slots(34) == 68
    once = make_plan(cache="dual", refresh_interval=25)
    assert (at(once, 0).num_rows, at(once, 1).num_rows) == (34, 4)
    assert at(once, 1).num_held_slots(8) == 34


STAGES = (PruneStage(1, 1, 0.3), PruneStage(1, 3, 0.5), PruneStage(6, 4, 0.9))


def follow(plan: StepPlan) -> list[Step]:
    """Every step, with the visual tokens that those before it leave."""
    steps, num_visual = [], 10
    for step in range(12):
        steps.append(at(plan, step, num_visual=num_visual))
        num_visual = steps[-1].num_visual_after
    return steps


def test_pruning():
    """10 visual tokens; 3 of them go, 3 of 7 go; in the sixth step 3 of 4 would, but
    each of the two images keeps one."""
    pruning = PruningParams(STAGES)
    steps = follow(make_plan(cache="dual", refresh_interval=25, pruning=pruning))
    assert [step.num_visual for step in steps] == [10, *[4] * 5, *[2] * 6]
    assert [step.num_slots for step in steps] == [34, *[28] * 5, *[26] * 6]
    assert [step.stages for step in steps[:2]] == [STAGES[:2], ()]
    assert steps[5].stages == STAGES[2:]
    # The canvas begins at 14, then at 12. A step that prunes is full.
    assert [step.computed for step in steps[:8]] == [
        *[FULL, Span(14, 18), Span(14, 18), Span(14, 18)],
        *[Span(0, 28), Span(0, 28), Span(16, 20), Span(16, 20)],
    ]
    assert steps[0].num_held_slots(8) == 34
    assert steps[1].num_held_slots(8) == 28


def test_segments():
    """From prune stage to prune stage, for both sequences of a guided request."""
    plan = make_plan(pruning=PruningParams(STAGES), cfg_scale=0.5)
    first, _, _, _, _, sixth, last = follow(plan)[:7]
    assert list(first.segments(LAYERS)) == [
        Segment(range(1, 2), 10, 34, 68, STAGES[0]),
        Segment(range(2, 4), 7, 31, 62, STAGES[1]),
        Segment(range(4, 5), 4, 28, 56, None),
    ]
    # Behind the last layer nothing is left to compute.
    assert list(sixth.segments(LAYERS)) == [
        Segment(range(1, 5), 4, 28, 56, STAGES[2]),
        Segment(range(5, 5), 2, 26, 52, None),
    ]
    assert list(last.segments(LAYERS)) == [Segment(range(1, 5), 2, 26, 52, None)]


def test_cached_step_is_one_segment():
    plan = make_plan(cache="dual", refresh_interval=25)
    assert list(at(plan, 5).segments(LAYERS)) == [Segment(range(1, 5), 10, 34, 4, None)]


@pytest.mark.parametrize(
    "lengths, least, prunes",
    [((4, 6), 10, True), ((4, 6), 11, False), ((), 0, False)],
)
def test_too_few_visual_tokens(lengths: tuple[int, ...], least: int, prunes: bool):
    """What counts are those of the whole request, not those that are left."""
    pruning = PruningParams(STAGES, min_visual_tokens=least)
    plan = make_plan(lengths, pruning=pruning)
    assert bool(plan.first.stages) == prunes
    assert bool(at(plan, 5, num_visual=min(2, sum(lengths))).stages) == prunes


def test_first_step():
    plan = make_plan(cache="dual", refresh_interval=25)
    assert plan.first == at(plan, 0)
    assert plan.first != at(plan, 1)


@st.composite
def any_plans(draw: st.DrawFn) -> StepPlan:
    """Blocks of up to 8 positions, with fewer steps than that or more."""
    block_length = draw(st.integers(1, 8))
    num_blocks = draw(st.integers(1, 4))
    lengths = draw(st.lists(st.integers(1, 20), max_size=3))
    stages = draw(
        st.lists(
            st.builds(
                PruneStage,
                st.integers(1, 40),
                st.integers(1, LAYERS),
                st.sampled_from([0.3, 0.75]),
            ),
            max_size=4,
            unique_by=lambda stage: (stage.step, stage.layer),
        )
    )
    stages.sort(key=lambda stage: (stage.step, stage.layer))
    params = DenoisingParams(
        gen_length=block_length * num_blocks,
        block_length=block_length,
        steps=num_blocks * draw(st.integers(1, 10)),
        max_answer_tokens=1,
        cache=draw(st.sampled_from(CACHES)),
        refresh_interval=draw(st.integers(1, 12)),
        cfg_scale=draw(st.sampled_from([0.0, 0.5])),
        pruning=PruningParams(tuple(stages)) if stages else None,
    )
    return StepPlan(params, sum(lengths) + draw(st.integers(1, 20)), tuple(lengths))


@settings(max_examples=300, deadline=None)
@given(any_plans())
def test_rows_left_are_those_of_the_full_steps(plan: StepPlan):
    """Of the steps that run, one after the other; wherever the request is."""
    steps = [step for step, _ in steps_of(plan)]
    full = [step.num_rows * step.is_full for step in steps]
    left = [plan.full_rows_left(step.index, step.num_visual) for step in steps]
    assert left == [sum(full[number:]) for number in range(len(steps))]


def test_transfer_count_of_the_official_example():
    assert [transfer_count(12, 5, step) for step in range(5)] == [3, 3, 2, 2, 2]


@given(st.integers(0, 300), st.integers(1, 300))
def test_transfer_counts_share_out_all_masks(num_masks: int, steps: int):
    """They sum to the masks, differ by one at most, and never grow."""
    counts = [transfer_count(num_masks, steps, step) for step in range(steps)]
    assert sum(counts) == num_masks
    assert max(counts) - min(counts) <= 1
    assert counts == sorted(counts, reverse=True)


def test_steps_past_the_masks_transfer_nothing():
    steps = 2**31 - 1
    counts = [transfer_count(3, steps, step) for step in (0, 2, 3, steps - 1)]
    assert counts == [1, 1, 0, 0]
