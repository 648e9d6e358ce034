# SPDX-License-Identifier: Apache-2.0
"""Numbers that are not finite end the request that has them, with an error."""

import math
from typing import Any

import pytest

from tests.engine.harness import Engine, prompt_of, sampling_of


def spoil(engine: Engine, name: str, number: float) -> None:
    """What the model sees of a running request's prompt."""
    (request,) = (
        request
        for req_id, request in engine.state._requests.items()
        if req_id.startswith(name)
    )
    assert request.prompt_embeds is not None
    request.prompt_embeds = request.prompt_embeds.clone()
    request.prompt_embeds[3] = number


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"remasking": "random"},
        {"cache": "dual", "refresh_interval": 2},
        {"confidence_threshold": 0.5},
        {"cfg_scale": 1.0},
    ],
    ids=str,
)
def test_only_its_request_ends(engine: Engine, golden_cases: Any, changes: Any):
    """The others run on, and those that get its KV blocks later are right."""
    case, other = golden_cases["text_32_32_32"], golden_cases["text_32_8_32"]
    params = sampling_of(case, seed=1, logprobs=1)
    params.extra_args |= changes
    engine.add_case(other)
    name = engine.add(prompt_of(case), params)
    while not any(req_id.startswith(name) for req_id in engine.state._requests):
        engine.step()  # Full steps take turns where there are cached ones.
    spoil(engine, name, math.nan if changes else math.inf)
    answers = engine.finish()
    assert answers[name].finish_reason == "error"
    assert len(answers[name].token_ids) < len(case.output_ids)
    assert tuple(answers[other.name].token_ids) == other.output_ids
    assert engine.free_blocks == engine.all_blocks
    for again in (case, other):
        assert tuple(engine.answer_case(again).token_ids) == again.output_ids


def test_kv_blocks_are_clear(engine: Engine, golden_cases: Any):
    """What a request leaves in its blocks does not reach the next ones, whose last
    block is not full, and which read it back."""
    case = golden_cases["text_32_32_32"]
    prompt_ids = engine.answer_case(case).prompt_token_ids

    def answer(length: int) -> Any:
        prompt = {"prompt_token_ids": prompt_ids[:length]}
        args = {"cache": "dual", "refresh_interval": 100}
        params = sampling_of(case)
        params.extra_args |= args
        return engine.answer(prompt, params)

    lengths = range(len(prompt_ids) - 64, len(prompt_ids), 7)
    expected = [answer(length).token_ids for length in lengths]
    for length, token_ids in zip(lengths, expected, strict=True):
        name = engine.add(prompt_of(case), sampling_of(case))
        engine.step()
        spoil(engine, name, math.nan)
        assert engine.finish()[name].finish_reason == "error"
        assert answer(length).token_ids == token_ids
