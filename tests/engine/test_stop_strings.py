# SPDX-License-Identifier: Apache-2.0
"""Stop strings in the text, through the engine: the answer is cut where Python's
``str.find`` finds the stop in the answer that nothing stopped."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vllm import SamplingParams

from tests.engine.harness import Engine
from tests.stop_strings import cut_at, stops_for

PROMPT = {"prompt": "w5 w6 w7 w8"}
MODES: dict[str, dict[str, Any]] = {
    "one block": {"gen_length": 24, "block_length": 24, "steps": 24},
    "blocks": {"gen_length": 32, "block_length": 8, "steps": 16},
    "cached": {"gen_length": 32, "block_length": 8, "steps": 16, "cache": "dual"},
    "confident": {"gen_length": 32, "block_length": 8, "confidence_factor": 1.0},
    "with a suffix": {
        "gen_length": 16,
        "block_length": 8,
        "steps": 8,
        "generation_suffix": " w9 w8",
    },
    "drawn": {"gen_length": 24, "block_length": 8, "steps": 12},
}


def _params(mode: str, **fields: Any) -> SamplingParams:
    return SamplingParams(
        max_tokens=None,
        temperature=1.0 if mode == "drawn" else 0.0,
        seed=3,
        ignore_eos=True,
        extra_args=MODES[mode],
        **fields,
    )


@pytest.fixture(scope="module")
def whole_texts(shared_engine: Engine) -> dict[str, str]:
    """What each mode answers without a stop."""
    return {mode: shared_engine.answer(PROMPT, _params(mode)).text for mode in MODES}


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data(), mode=st.sampled_from(sorted(MODES)), keeps_stop=st.booleans())
def test_cut_is_that_of_str_find(
    engine: Engine,
    whole_texts: dict[str, str],
    data: st.DataObject,
    mode: str,
    keeps_stop: bool,
) -> None:
    """And what comes before the end is never more than the answer."""
    whole = whole_texts[mode]
    stops = data.draw(stops_for(whole))
    text, stop = cut_at(whole, stops, keeps_stop)
    params = _params(mode, stop=stops, include_stop_str_in_output=keeps_stop)
    name = engine.add(PROMPT, params)
    while engine.is_busy:
        engine.step()
        assert text.startswith(engine.answers[name].text)
    answer = engine.finish()[name]
    assert answer.text == text
    assert answer.stop_reason == stop
    assert answer.finish_reason == ("length" if stop is None else "stop")
    assert engine.free_blocks == engine.all_blocks


def test_denoising_ends_with_the_stop(
    engine: Engine, whole_texts: dict[str, str]
) -> None:
    """Later blocks are not denoised; at most a step is on its way already."""
    whole = whole_texts["blocks"]
    stop = whole.split()[2]
    engine.reset_observations()
    answer = engine.answer(PROMPT, _params("blocks", stop=[stop[1:]]))
    assert answer.text == whole[: whole.index(stop) + 1]
    figures = answer.last.kv_transfer_params["lladav"]
    # A block of 8 positions takes 4 steps.
    assert figures["denoising_steps"] <= 4
    assert len([tokens for tokens in engine.num_scheduled if tokens]) <= 5
    # vLLM's own rule: tokens up to the one that completes the stop.
    assert len(answer.token_ids) == 3


def test_end_of_turn_is_no_part_of_the_text(engine: Engine, golden_cases: Any) -> None:
    """Nor is the token before it lost, with stops that are nowhere."""
    case = golden_cases["text_stop"]
    params = {"stop": ["nowhere"], "ignore_eos": False}
    answer = engine.answer_case(case, **params)
    assert tuple(answer.token_ids) == case.output_ids
    assert answer.text == case.output_text
    assert answer.finish_reason == "stop"


def test_official_search_finds_tokens_only(
    engine: Engine, whole_texts: dict[str, str]
) -> None:
    """A part of a word is no token, so that nothing ends there."""
    whole = whole_texts["one block"]
    fields = {**MODES["one block"], "stop_search": "tokens"}
    params = _params("one block", stop=[whole.split()[1][1:]])
    params.extra_args = fields
    assert engine.answer(PROMPT, params).text == whole
