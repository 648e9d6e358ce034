# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of unmasking against plain definitions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_lladav.denoising.plan import transfer_count
from vllm_lladav.denoising.unmasking import (
    chosen_probability,
    greedy_tokens,
    gumbel_tokens,
    most_confident,
    num_confident,
    select_transfers,
    shared_transfers,
)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 5),
    st.integers(2, 2000),
    st.sampled_from([1.0, 3.0, 10.0]),
    st.booleans(),
)
def test_chosen_probability_is_softmax(
    seed: int, rows: int, vocab: int, scale: float, greedy: bool
):
    """Within 1e-6 of the float64 softmax at the most likely token, whose confidence
    decides. Elsewhere the float32 rounding of the distance to it comes on top."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocab, generator=generator) * scale
    logits[:, 0] = -math.inf
    best, argmax = logits.max(-1)
    tokens = torch.randint(1, vocab, (rows,), generator=generator)
    tokens = argmax if greedy else tokens
    gap = best - logits.gather(-1, tokens[:, None])[:, 0]
    expected = logits.double().softmax(-1).gather(-1, tokens[:, None])[:, 0]
    actual = chosen_probability(logits, argmax, tokens)
    assert actual.dtype == torch.float64
    tolerance = 1e-6 + gap * torch.finfo(torch.float32).eps
    assert bool(((actual - expected).abs() <= tolerance * expected).all())


def test_chosen_probability_at_full_vocabulary():
    """126,349 summands do not add up to a larger error."""
    logits = torch.randn(4, 126_349, generator=torch.Generator().manual_seed(0))
    best = logits.argmax(-1)
    expected = logits.double().softmax(-1).gather(-1, best[:, None])[:, 0]
    actual = chosen_probability(logits, best, best)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)


def test_probabilities_next_to_one_keep_their_order():
    """1 - p down to 1e-14 is told apart, as float64 does and float32 cannot."""
    gaps = torch.linspace(16.0, 30.0, 57)
    logits = torch.stack([gaps, torch.zeros(57), torch.zeros(57)], dim=-1)
    best = torch.zeros(57, dtype=torch.int64)
    expected = 1 - 2 / (gaps.double().exp() + 2)
    probability = chosen_probability(logits, best, best)
    assert bool((probability.diff() > 0).all())
    torch.testing.assert_close(1 - probability, 1 - expected, rtol=1e-2, atol=0)


def test_greedy_tokens():
    logits = torch.tensor([[0.0, 2.0, 1.0], [-math.inf, -5.0, -6.0]])
    assert greedy_tokens(logits).tolist() == [1, 1]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_gumbel_tokens_follow_the_tempered_distribution(temperature: float):
    """Frequencies of 40,000 draws equal softmax(logits / temperature) within five
    standard errors; a banned id is never drawn."""
    num_draws = 40_000
    logits = torch.tensor([2.0, 0.0, 1.0, -math.inf, -1.0])
    generator = torch.Generator().manual_seed(7)
    uniform = torch.rand(
        num_draws, len(logits), dtype=torch.float64, generator=generator
    )
    temperatures = torch.full((num_draws,), temperature, dtype=torch.float64)
    tokens = gumbel_tokens(logits.expand(num_draws, -1), temperatures, uniform)
    counts = torch.bincount(tokens, minlength=len(logits)).double()
    expected = (logits.double() / temperature).softmax(-1)
    error = (expected * (1 - expected) / num_draws).sqrt()
    assert bool(((counts / num_draws - expected).abs() <= 5 * error).all())
    assert counts[3] == 0


def test_gumbel_tokens_are_the_noise_formula():
    """argmax of exp(logits) / (-log u)^t, computed with Python floats, where every row
    has a t of its own."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(40, 11, generator=generator)
    uniform = torch.rand(40, 11, dtype=torch.float64, generator=generator)
    temperature = torch.tensor([0.3, 1.0], dtype=torch.float64).repeat(20)
    expected = []
    for row in range(40):
        noise = [-math.log(u) for u in uniform[row].tolist()]
        scores = [
            math.exp(logit) / n ** temperature[row].item()
            for logit, n in zip(logits[row].tolist(), noise, strict=True)
        ]
        expected.append(scores.index(max(scores)))
    assert gumbel_tokens(logits, temperature, uniform).tolist() == expected


def test_gumbel_tokens_with_extreme_noise():
    """0 is a possible draw of other noise than ours; its token never wins. Large
    logits of the official model do not overflow."""
    for logits in ([1.0, 1.0], [90.0, 100.0], [9e4, 1e5]):
        uniform = torch.tensor([[0.0, 0.5]], dtype=torch.float64)
        ones = torch.ones(1, dtype=torch.float64)
        assert gumbel_tokens(torch.tensor([logits]), ones, uniform).tolist() == [1]


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=1, max_size=30),
    st.data(),
)
def test_select_transfers_takes_the_most_confident(cells, data):
    """Whatever is left out is less confident than, or equal to, all that is taken;
    what is no candidate is taken last."""
    candidates = [i for i, (is_candidate, _) in enumerate(cells) if is_candidate]
    confidence = [cells[i][1] / 8 for i in candidates]
    count = data.draw(st.integers(0, len(cells)))
    selected = select_transfers(
        torch.tensor(candidates, dtype=torch.int64),
        torch.tensor(confidence, dtype=torch.float64),
        count,
        len(cells),
    ).tolist()
    assert len(set(selected)) == len(selected) == count
    score = {i: -1.0 for i in range(len(cells))} | dict(
        zip(candidates, confidence, strict=True)
    )
    left = [score[i] for i in range(len(cells)) if i not in selected]
    taken = [score[i] for i in selected]
    assert not left or not taken or max(left) <= min(taken)
    assert taken == sorted(taken, reverse=True)


CONFIDENCES = st.lists(st.integers(0, 12), max_size=20)


def ranked(confidence: list[int], width: int) -> torch.Tensor:
    """``[1, width]``: sorted, as a step has them."""
    places = sorted(confidence, reverse=True) + [-math.inf] * width
    return torch.tensor([places[:width]], dtype=torch.float64) / 8


@given(CONFIDENCES, st.data())
def test_most_confident(confidence: list[int], data):
    """What the official ranking selects, or a choice that says that it is not clear."""
    number = len(confidence)
    count = data.draw(st.integers(0, number + 2))
    width = number + data.draw(st.integers(2, 5))
    places = sorted(data.draw(st.permutations(range(width)))[:number])
    scores = torch.full((1, width), -math.inf, dtype=torch.float64)
    scores[0, places] = torch.tensor(confidence, dtype=torch.float64) / 8
    chosen, is_clear = most_confident(
        scores, ranked(confidence, width), torch.tensor([count])
    )
    best = sorted(places, key=lambda p: (-float(scores[0, p]), p))
    assert chosen[0].nonzero()[:, 0].tolist() == sorted(best[:count])
    edge = [float(scores[0, p]) for p in best[max(count - 1, 0) : count + 1]]
    is_tied = count > 0 and len(edge) == 2 and edge[0] == edge[1]
    assert bool(is_clear) == (count <= number and not is_tied)
    if is_clear:
        selected = select_transfers(
            torch.tensor(places, dtype=torch.int64), scores[0, places], count, width
        )
        assert sorted(best[:count]) == sorted(selected.tolist())


@given(
    st.lists(st.integers(0, 8), min_size=1, max_size=12),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    st.integers(0, 3),
)
def test_num_confident(eighths: list[int], threshold: float, factor: float, spare: int):
    """By the definitions of the two rules, one candidate after the other."""
    confidence = sorted((number / 8 for number in eighths), reverse=True)
    by_threshold = sum(c >= threshold for c in confidence) if threshold else 0
    by_factor = 0
    while (
        factor
        and by_factor < len(confidence)
        and (by_factor + 2) * (1 - confidence[by_factor]) < factor
    ):
        by_factor += 1
    count = num_confident(
        ranked(eighths, len(eighths) + spare),
        torch.tensor([[threshold or math.inf]]).double(),
        torch.tensor([[factor or -math.inf]]).double(),
    )
    assert count.tolist() == [max(by_threshold, by_factor, 1)]


@given(st.integers(0, 40), st.integers(1, 9), st.data())
def test_shared_transfers(num_masks: int, steps: int, data):
    step = data.draw(st.integers(0, steps - 1))
    numbers = (torch.tensor([number]) for number in (num_masks, steps, step))
    expected = transfer_count(num_masks, steps, step)
    assert shared_transfers(*numbers).tolist() == [expected]


def test_probability_of_equal_logits():
    logits, first = torch.zeros(1, 3), torch.tensor([0])
    probability = chosen_probability(logits, first, torch.tensor([2]))
    assert probability.item() == pytest.approx(1 / 3, rel=1e-6)
