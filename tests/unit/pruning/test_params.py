# SPDX-License-Identifier: Apache-2.0
"""Counting visual tokens and reading stages against plain definitions."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_lladav.pruning.params import (
    PruneStage,
    PruningParams,
    num_kept,
    parse_stages,
)

IMAGES = st.lists(st.integers(1, 30), min_size=1, max_size=4)
RATES = st.floats(0.001, 0.999)


@given(IMAGES, RATES)
def test_num_kept(images: list[int], rate: float):
    """floor(rate * n) are dropped, unless an image would lose all of its tokens."""
    total = sum(images)
    kept = num_kept(total, len(images), rate)
    assert len(images) <= kept <= total
    dropped = math.floor(Fraction(rate) * total)
    assert (
        kept == max(total - dropped, len(images))
        or abs(rate * total - round(rate * total)) < 1e-9
    )


@pytest.mark.parametrize(
    ("total", "rate", "kept"), [(2819, 0.5, 1410), (2819, 0.75, 705), (3, 0.3, 3)]
)
def test_num_kept_of_known_cases(total: int, rate: float, kept: int):
    assert num_kept(total, 1, rate) == kept


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), RATES), min_size=1))
def test_parse_stages(stages: list[tuple[int, int, float]]):
    text = ",".join(f"{step}:{layer}:{rate}" for step, layer, rate in stages)
    order = [(step, layer) for step, layer, _ in stages]
    if order == sorted(set(order)):
        assert parse_stages(text) == tuple(PruneStage(*stage) for stage in stages)
    else:
        with pytest.raises(ValueError, match="must come after"):
            parse_stages(text)


@pytest.mark.parametrize(
    "text",
    ["", "1:2", "1:2:0.5:3", "a:2:0.5", "1:2:x", "0:2:0.5", "1:0:0.5", "1:2:1"]
    + ["1:2:0", "1:2:nan", "1:2:inf", "1:2:0.5,", "1.5:2:0.5"],
)
def test_bad_stages(text: str):
    with pytest.raises(ValueError, match=f"^{text.split(',')[-1]!r}"):
        parse_stages(text)


def test_stages_of_a_step():
    stages = parse_stages("1:2:0.5,1:3:0.5,4:1:0.25")
    params = PruningParams(stages)
    assert params.stages_of(0) == stages[:2]
    assert params.stages_of(1) == ()
    assert params.stages_of(3) == stages[2:]


def test_what_follows_from_the_policy():
    stages = (PruneStage(1, 1, 0.5),)
    known = [
        PruningParams(stages, policy) for policy in ("fastv", "adaptive", "random")
    ]
    assert [params.is_adaptive for params in known] == [False, True, False]
    assert [params.is_random for params in known] == [False, False, True]
