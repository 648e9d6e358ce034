# SPDX-License-Identifier: Apache-2.0
"""Choosing visual tokens against plain definitions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_lladav.pruning.policies import policy_of
from vllm_lladav.pruning.policies.fastv import FastV
from vllm_lladav.pruning.selection import select_kept

IMAGES = st.lists(st.integers(1, 30), min_size=1, max_size=4)
FASTV = policy_of("fastv")


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
    kept = select_kept(FASTV, scores, image_ids, num_images, count, 0.1).tolist()
    order = plain_order(scores.tolist(), image_ids.tolist())
    assert kept == sorted(order[:count])
    assert {int(image_ids[i]) for i in kept} == set(image_ids.tolist())


def test_ties_go_to_the_lower_position():
    image_ids = torch.zeros(5000, dtype=torch.int64)
    kept = select_kept(FASTV, torch.zeros(5000), image_ids, 1, 1234, 1.0)
    assert kept.tolist() == list(range(1234))


@pytest.mark.parametrize(("count", "kept"), [(0, 2), (2, 2), (4, 4), (9, 5)])
def test_a_policy_cannot_leave_the_bounds(count: int, kept: int):
    """The plan has counted on the largest number; an image never goes whole."""

    class Stubborn(FastV):
        def count(self, ranked: torch.Tensor, num_kept: int, tau: float) -> int:
            assert ranked.tolist() == [6.0, 1.0, 5.0, 4.0, 3.0, 2.0]
            assert (num_kept, tau) == (5, 0.5)
            return count

    scores = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    image_ids = torch.tensor([0, 1, 1, 1, 1, 1])
    chosen = select_kept(Stubborn(), scores, image_ids, 2, 5, 0.5)
    assert chosen.tolist() == [0, *range(7 - kept, 6)]


@given(scored_images(), st.floats(0.01, 1.0), st.data())
def test_adaptive(
    images: tuple[torch.Tensor, torch.Tensor], tau: float, data: st.DataObject
):
    """Enough for the share tau, and one less would not be; what the plan allows at
    most, and one of every image at least."""
    scores, image_ids = images
    num_images = len(set(image_ids.tolist()))
    most = data.draw(st.integers(num_images, len(scores)))
    adaptive = policy_of("adaptive")
    kept = select_kept(adaptive, scores, image_ids, num_images, most, tau).tolist()
    count = len(kept)
    assert num_images <= count <= most
    order = plain_order(scores.tolist(), image_ids.tolist())
    assert kept == sorted(order[:count])
    mass = scores.double()[torch.tensor(order)]
    needed = tau * float(mass.sum())
    if count < most:
        assert float(mass[:count].sum()) >= needed - 1e-9
    if count > num_images:
        assert float(mass[: count - 1].sum()) < needed + 1e-9
