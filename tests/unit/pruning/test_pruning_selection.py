# SPDX-License-Identifier: Apache-2.0
"""Counting and choosing visual tokens against plain definitions."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_lladav.pruning.params import (
    PruneStage,
    PruningParams,
    num_kept,
    parse_stages,
)
from vllm_lladav.pruning.selection import count_covering, select_kept

IMAGES = st.lists(st.integers(1, 30), min_size=1, max_size=4)
RATES = st.floats(0.001, 0.999)


@st.composite
def scored_images(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores with many ties, and the image of each token."""
    images = draw(IMAGES)
    total = sum(images)
    scores = draw(
        st.lists(st.sampled_from([0.0, 0.1, 0.5, 2.0]), min_size=total, max_size=total)
    )
    ids = [index for index, length in enumerate(images) for _ in range(length)]
    return torch.tensor(scores), torch.tensor(ids)


def plain_order(scores: list[float], image_ids: list[int]) -> list[int]:
    """The best of every image, then the others; lower positions win ties."""
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    best = {image_ids[i]: i for i in reversed(ranked)}
    ahead = [i for i in ranked if best[image_ids[i]] == i]
    return ahead + [i for i in ranked if best[image_ids[i]] != i]


@given(scored_images(), st.data())
def test_select_kept(images: tuple[torch.Tensor, torch.Tensor], data: st.DataObject):
    scores, image_ids = images
    num_images = len(set(image_ids.tolist()))
    count = data.draw(st.integers(num_images, len(scores)))
    kept = select_kept(scores, image_ids, count).tolist()
    order = plain_order(scores.tolist(), image_ids.tolist())
    assert kept == sorted(order[:count])
    assert {int(image_ids[i]) for i in kept} == set(image_ids.tolist())


def test_ties_go_to_the_lower_position():
    kept = select_kept(torch.zeros(5000), torch.zeros(5000, dtype=torch.int64), 1234)
    assert kept.tolist() == list(range(1234))


@given(scored_images(), st.floats(0.01, 1.0))
def test_count_covering(images: tuple[torch.Tensor, torch.Tensor], tau: float):
    """Enough for the share tau, and one less would not be."""
    scores, image_ids = images
    num_images = len(set(image_ids.tolist()))
    count = count_covering(scores, image_ids, tau)
    assert num_images <= count <= len(scores)
    order = plain_order(scores.tolist(), image_ids.tolist())
    mass = scores.double()[torch.tensor(order)]
    needed = tau * float(mass.sum())
    assert float(mass[:count].sum()) >= needed - 1e-9
    if count > num_images:
        assert float(mass[: count - 1].sum()) < needed + 1e-9


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
