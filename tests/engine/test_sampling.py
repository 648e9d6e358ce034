# SPDX-License-Identifier: Apache-2.0
"""Temperature, random remasking, seeds and several samples."""

import pytest
from vllm import SamplingParams

from tests.engine.harness import Engine, prompt_of, sampling_of

RANDOM = [
    {"temperature": 0.7},
    {"temperature": 0.0, "remasking": "random"},
    {"temperature": 0.7, "remasking": "random"},
]


def random_params(case, temperature: float, remasking: str | None = None, **changes):
    params = sampling_of(case, temperature=temperature, **changes)
    params.extra_args = {**(params.extra_args or {}), "remasking": remasking}
    return params


@pytest.mark.parametrize("options", RANDOM, ids=str)
def test_same_seed_same_tokens_in_any_company(engine: Engine, golden_cases, options):
    """Alone, again, and among others that come and go; another seed gives another
    answer, and none is the greedy one."""
    case = golden_cases["text_32_32_16"]
    prompt, params = prompt_of(case), random_params(case, **options, seed=5)
    alone = engine.answer(prompt, params).token_ids
    assert engine.answer(prompt, params).token_ids == alone
    other_seed = random_params(case, **options, seed=6)
    engine.add_case(golden_cases["text_stop"])
    engine.step(3)
    engine.add(prompt, other_seed, "other")
    engine.add(prompt, params, "same")
    engine.step(2)
    engine.add_case(golden_cases["text_32_32_32"], temperature=1.0, seed=5)
    answers = engine.finish()
    assert answers["same"].token_ids == alone
    assert answers["other"].token_ids != alone
    assert len(alone) == case.generate.gen_length
    assert tuple(alone) != case.output_ids
    stop = golden_cases["text_stop"]
    assert tuple(answers[stop.name].token_ids) == stop.output_ids


def test_without_a_seed_every_answer_is_another(engine: Engine, golden_cases):
    case = golden_cases["text_16_16_40"]
    params = random_params(case, temperature=0.7)
    answers = {tuple(engine.answer(prompt_of(case), params).token_ids) for _ in "abc"}
    assert len(answers) == 3
    assert params.seed is None, "the caller's parameters are not changed"


@pytest.mark.parametrize("restriction", [{"top_k": 1}, {"top_p": 1e-6}])
def test_the_most_likely_token_only(engine: Engine, golden_cases, restriction):
    """Whatever the noise: sampling is greedy then."""
    case = golden_cases["text_16_16_40"]
    answer = engine.answer_case(case, temperature=1.5, seed=3, **restriction)
    assert tuple(answer.token_ids) == case.output_ids


@pytest.mark.parametrize("restriction", [{"top_k": 50}, {"top_p": 0.3}])
def test_restricted_sampling(engine: Engine, golden_cases, restriction):
    """Neither greedy nor what all words give."""
    case = golden_cases["text_16_16_40"]
    free = engine.answer_case(case, temperature=1.0, seed=3).token_ids
    answer = engine.answer_case(case, temperature=1.0, seed=3, **restriction)
    assert answer.token_ids != free
    assert tuple(answer.token_ids) != case.output_ids


def test_banned_tokens_are_never_sampled(engine: Engine, golden_cases):
    """At the highest temperature that vLLM allows."""
    case = golden_cases["text_16_16_40"]
    banned = set(case.step1.banned_ids)
    assert len(banned) == 4
    params = random_params(case, temperature=2.0, seed=0)
    assert not banned & set(engine.answer(prompt_of(case), params).token_ids)


def test_seed_with_temperature_zero(engine: Engine, golden_cases):
    """OpenAI clients send a seed with every request: it has no effect here."""
    case = golden_cases["text_16_16_40"]
    answer = engine.answer_case(case, seed=5)
    assert tuple(answer.token_ids) == case.output_ids


@pytest.mark.parametrize("seed", [-5, 2**63 - 1])
def test_any_64_bit_seed(engine: Engine, golden_cases, seed: int):
    case = golden_cases["text_2_2_2"]
    answer = engine.answer_case(case, seed=seed, temperature=0.5)
    assert len(answer.token_ids) == 2


def test_several_samples(engine: Engine, golden_cases):
    """n samples are n different answers; sample i is what seed + i gives alone."""
    case = golden_cases["text_16_16_40"]
    params = random_params(case, temperature=0.9, seed=3, n=3)
    (output,) = engine.llm.generate([prompt_of(case)], params, use_tqdm=False)
    samples = [list(sample.token_ids) for sample in output.outputs]
    assert [sample.index for sample in output.outputs] == [0, 1, 2]
    assert len({tuple(sample) for sample in samples}) == 3
    for index, sample in enumerate(samples):
        single = random_params(case, temperature=0.9, seed=3 + index)
        assert engine.answer(prompt_of(case), single).token_ids == sample


def test_defaults_of_a_bare_request(engine: Engine, golden_cases):
    """No length, no temperature: the official demo's 128 greedy positions."""
    params = engine.llm.get_default_sampling_params()
    assert isinstance(params, SamplingParams)
    assert (params.max_tokens, params.temperature) == (128, 0.0)
