# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities of answer tokens, each from the step that unmasked it."""

import math

import pytest

from tests.engine.harness import Answer, Engine, prompt_of, sampling_of
from tests.golden.cases import GoldenCase


def recorded_confidence(case: GoldenCase) -> dict[int, float]:
    """Probability of every canvas token when the official code unmasked it."""
    return {
        position: confidence
        for step in case.steps
        for position, confidence, was_mask in zip(
            step.positions, step.confidence, step.was_mask, strict=True
        )
        if was_mask and position >= 0
    }


def own_logprobs(answer: Answer) -> list[float]:
    return [
        likely[token_id].logprob
        for likely, token_id in zip(answer.logprobs, answer.token_ids, strict=True)
    ]


@pytest.mark.parametrize(
    "name", ["text_32_8_32", "text_16_16_40", "text_stop", "text_cfg", "img_square"]
)
def test_they_are_the_official_confidence(engine: Engine, golden_cases, name: str):
    case = golden_cases[name]
    answer = engine.answer_case(case, logprobs=2)
    assert tuple(answer.token_ids) == case.output_ids
    confidence = recorded_confidence(case)
    for position, logprob in enumerate(own_logprobs(answer)):
        assert math.exp(logprob) == pytest.approx(confidence[position], rel=1e-3)


def test_most_likely_tokens_come_with_their_ranks(engine: Engine, golden_cases):
    """Sampled tokens are not always the most likely one."""
    case = golden_cases["text_32_32_16"]
    answer = engine.answer_case(case, logprobs=5, temperature=1.0, seed=1)
    ranks = []
    for likely, token_id in zip(answer.logprobs, answer.token_ids, strict=True):
        assert len(likely) in (5, 6)
        own = likely[token_id]
        assert (len(likely) == 5) == (own.rank <= 5)
        by_rank = sorted(likely.values(), key=lambda token: token.rank)
        assert [token.rank for token in by_rank[:5]] == [1, 2, 3, 4, 5]
        logprobs = [token.logprob for token in by_rank]
        assert logprobs == sorted(logprobs, reverse=True)
        ranks.append(own.rank)
    assert max(ranks) > 1


def test_suffix_tokens_are_certain(engine: Engine, golden_cases):
    case = golden_cases["text_suffix"]
    answer = engine.answer_case(case, logprobs=0)
    assert tuple(answer.token_ids) == case.output_ids
    logprobs = own_logprobs(answer)
    num_suffix = len(case.output_ids) - case.generate.gen_length
    assert num_suffix > 0
    assert logprobs[-num_suffix:] == [0.0] * num_suffix
    assert all(logprob < 0 for logprob in logprobs[:-num_suffix])


def test_every_request_gets_what_it_asked_for(engine: Engine, golden_cases):
    """Different numbers and none in one batch, with the tokens of the goldens."""
    names = ["text_32_8_32", "text_stop", "text_16_16_40", "img_two_pad_list"]
    for name, count in zip(names, [3, None, 0, 1], strict=True):
        engine.add_case(golden_cases[name], logprobs=count)
    answers = engine.finish()
    for name, count in zip(names, [3, None, 0, 1], strict=True):
        answer = answers[name]
        assert tuple(answer.token_ids) == golden_cases[name].output_ids
        if count is None:
            assert answer.logprobs == []
        else:
            widths = {len(likely) for likely in answer.logprobs}
            assert len(answer.logprobs) == len(answer.token_ids)
            assert widths == {max(count, 1)}
    alone = engine.answer_case(golden_cases["text_32_8_32"], logprobs=3)
    assert own_logprobs(answers["text_32_8_32"]) == pytest.approx(own_logprobs(alone))


@pytest.mark.parametrize("cache", ["prompt", "dual"])
def test_with_caches_and_several_positions_a_step(
    engine: Engine, golden_cases, cache: str
):
    """A step unmasks what reaches the threshold, or the most confident one."""
    case = golden_cases["text_32_8_32"]
    params = sampling_of(case, logprobs=1)
    params.extra_args |= {"cache": cache, "confidence_threshold": 0.05}
    answer = engine.answer(prompt_of(case), params)
    assert len(own_logprobs(answer)) == case.generate.gen_length
    assert sum(math.exp(logprob) >= 0.05 for logprob in own_logprobs(answer)) > 8
