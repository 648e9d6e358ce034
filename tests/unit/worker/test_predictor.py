# SPDX-License-Identifier: Apache-2.0
"""Rows of hidden states to tokens, with a head that is a plain matrix."""

import math

import pytest
import torch
from vllm.triton_utils import HAS_TRITON

from vllm_lladav.denoising.noise import uniform
from vllm_lladav.denoising.traits import Traits
from vllm_lladav.worker import predictor
from vllm_lladav.worker.predictor import (
    Predictions,
    Predictor,
    RowSampling,
    restricted_rows,
)

pytestmark = pytest.mark.skipif(HAS_TRITON, reason="a GPU runs kernels instead")
VOCAB, PADDED, HIDDEN, ROWS = 300, 320, 8, 40
BANNED = (3, 7)
OFF = (VOCAB, 1.0)


class Head:
    padded_vocab_size = PADDED

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(PADDED, HIDDEN, generator=generator)
        self.most_rows = 0

    def compute_vocab_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        self.most_rows = max(self.most_rows, len(hidden_states))
        # Products of a row that are the same in any batch.
        return (hidden_states[:, None] * self.weight).sum(-1)


@pytest.fixture
def head() -> Head:
    return Head()


@pytest.fixture
def predict(head: Head, monkeypatch: pytest.MonkeyPatch) -> Predictor:
    """With tiles of 16 rows, in which 3 are sampled at once."""
    monkeypatch.setattr(predictor, "LOGITS_TILE_BYTES", 4 * VOCAB * 16)
    monkeypatch.setattr(predictor, "NOISE_BYTES", 8 * VOCAB * 3)
    traits = Traits(VOCAB, 0, 1, BANNED, None, 100)
    return Predictor(head, traits, torch.device("cpu"))  # type: ignore[arg-type]


@pytest.fixture
def hidden_states() -> torch.Tensor:
    return torch.randn(ROWS, HIDDEN, generator=torch.Generator().manual_seed(1))


def sampling_of(*restrictions: tuple[int, float]) -> RowSampling:
    """One (top_k, top_p) after the other, temperatures that differ."""
    k, p = zip(*(restrictions[i % len(restrictions)] for i in range(ROWS)), strict=True)
    return RowSampling(
        temperature=torch.linspace(0.2, 2.0, ROWS, dtype=torch.float64),
        top_k=torch.tensor(k, dtype=torch.int32),
        top_p=torch.tensor(p),
        keys=torch.arange(ROWS) * 12345678901234567,
        restricts=any(restriction != OFF for restriction in restrictions),
    )


def word_logits(head: Head, hidden_states: torch.Tensor) -> torch.Tensor:
    """``[n, VOCAB]``, float64."""
    logits = head.compute_vocab_logits(hidden_states)[:, :VOCAB].double()
    logits[:, list(BANNED)] = -math.inf
    return logits


def noisy_choice(logits: torch.Tensor, sampling: RowSampling) -> torch.Tensor:
    """The official formula."""
    noise = -uniform(sampling.keys, VOCAB).log()
    return (logits.exp() / noise ** sampling.temperature[:, None]).argmax(-1)


def confidence_of(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return logits.softmax(-1).gather(-1, tokens[:, None])[:, 0]


def check_confidence(logits: torch.Tensor, found: Predictions) -> None:
    expected = confidence_of(logits, found.tokens)
    torch.testing.assert_close(found.confidence, expected, rtol=1e-5, atol=0)


def test_greedy(predict: Predictor, head: Head, hidden_states):
    logits = word_logits(head, hidden_states)
    head.most_rows = 0
    found = predict.predict(hidden_states, None)
    assert torch.equal(found.tokens, logits.argmax(-1))
    check_confidence(logits, found)
    assert head.most_rows <= 16


def test_sampled(predict: Predictor, head: Head, hidden_states):
    """The temperature is one of the noise: confidence does not know it."""
    logits = word_logits(head, hidden_states)
    sampling = sampling_of(OFF)
    found = predict.predict(hidden_states, sampling)
    assert torch.equal(found.tokens, noisy_choice(logits, sampling))
    assert not torch.equal(found.tokens, logits.argmax(-1))
    check_confidence(logits, found)


@pytest.mark.parametrize(
    "restrictions",
    [[(5, 1.0)], [(VOCAB, 0.6)], [(5, 1.0), (VOCAB, 0.6), OFF, (20, 0.8)]],
    ids=str,
)
def test_restricted(predict: Predictor, head: Head, hidden_states, restrictions):
    """To the k most likely at the row's temperature, and to the fewest of them with
    p of the probability; confidence is one among all."""
    logits = word_logits(head, hidden_states)
    sampling = sampling_of(*restrictions)
    found = predict.predict(hidden_states, sampling)
    allowed = logits.clone()
    for row, (k, p) in enumerate(zip(sampling.top_k, sampling.top_p, strict=True)):
        tempered = logits[row] / sampling.temperature[row]
        ranked = tempered.argsort(descending=True)[: int(k)]
        probability = tempered[ranked].softmax(-1)
        before = probability.cumsum(-1) - probability
        allowed[row] = -math.inf
        kept = ranked[before < p]
        allowed[row, kept] = logits[row, kept]
    assert torch.equal(found.tokens, noisy_choice(allowed, sampling))
    check_confidence(logits, found)


@pytest.mark.parametrize("restriction", [(1, 1.0), (VOCAB, 1e-6)])
def test_the_most_likely_only(
    predict: Predictor, head: Head, hidden_states, restriction
):
    found = predict.predict(hidden_states, sampling_of(restriction))
    expected = predict.predict(hidden_states, None)
    assert all(map(torch.equal, found, expected))


def test_rows_alone_as_in_the_batch(predict: Predictor, hidden_states):
    """Whatever the company is restricted to."""
    sampling = sampling_of(OFF, (5, 1.0), OFF, (VOCAB, 0.6))
    found = predict.predict(hidden_states, sampling)
    for row in range(ROWS):
        one = sampling.at(slice(row, row + 1))
        one = one._replace(restricts=row % 2 == 1)
        tokens, confidence = predict.predict(hidden_states[row : row + 1], one)
        assert tokens == found.tokens[row]
        torch.testing.assert_close(confidence[0], found.confidence[row])


def test_no_rows(predict: Predictor):
    nothing = torch.empty(0, HIDDEN)
    for sampling in (None, sampling_of(OFF).at(slice(0))):
        tokens, confidence = predict.predict(nothing, sampling)
        assert (tokens.shape, tokens.dtype) == ((0,), torch.int64)
        assert (confidence.shape, confidence.dtype) == ((0,), torch.float64)


def test_warm_up_has_as_many_rows_as_a_tile(predict: Predictor, head: Head):
    """On a GPU, the second of these rows, too."""
    predict.warm_up(torch.zeros(1, HIDDEN))
    assert head.most_rows == 16
    sampling = restricted_rows(20, VOCAB, torch.device("cpu"))
    found = predict.predict(torch.zeros(20, HIDDEN), sampling)
    assert len(found.tokens) == 20
