# SPDX-License-Identifier: Apache-2.0
"""The engine's answers are the official code's, token by token and step by step."""

import random

import pytest
from vllm.exceptions import VLLMValidationError

from tests.engine.harness import (
    images_of,
    is_servable,
    prompt_of,
    recorded_steps,
    recorded_transfers,
    sampling_of,
)
from tests.golden.cases import GoldenCase, load_cases
from vllm_lladav.model import cpu_layer

SERVABLE = [case for case in load_cases().values() if is_servable(case)]
SAME_CHECKPOINT = [case for case in SERVABLE if not case.head_gains]


def test_enough_cases_are_served():
    """Text and images of every mode; what is left out is left out on purpose."""
    left_out = {name for name in load_cases()} - {case.name for case in SERVABLE}
    assert left_out == {
        *("img_cache_demo", "img_cache_demo_stable", "img_truncated"),
        *("text_cache_demo", "text_cache_demo_stable", "text_cache_ratio0"),
    }


@pytest.mark.parametrize("case", SAME_CHECKPOINT, ids=lambda case: case.name)
def test_golden(engine, case: GoldenCase):
    """Tokens, text, prompt length, and what every step transferred."""
    with recorded_transfers() as transfers:
        answer = engine.answer_case(case)
    check(case, answer, transfers)


def test_rows_go_through_a_layer_in_pieces(engine, golden_cases, monkeypatch):
    """As those of large steps do; here 7 at a time."""
    case = golden_cases["img_square"]
    sizes, watches = set(), []
    for layer in engine.model.model.layers:
        hook = layer.mlp.register_forward_hook
        watches.append(hook(lambda _, inputs, __: sizes.add(len(inputs[0]))))
    monkeypatch.setattr(cpu_layer, "PIECE_BYTES", 1)
    monkeypatch.setattr(cpu_layer, "LEAST_ROWS", 7)
    try:
        answer = engine.answer_case(case)
    finally:
        for handle in watches:
            handle.remove()
    assert max(sizes) == 7
    assert tuple(answer.token_ids) == case.output_ids


def check(case: GoldenCase, answer, transfers) -> None:
    assert tuple(answer.token_ids) == case.output_ids
    assert answer.text == case.output_text
    assert len(answer.prompt_token_ids) == case.prompt_len
    if not case.images:
        assert tuple(answer.prompt_token_ids) == case.input_ids
    assert transfers == recorded_steps(case)
    is_stopped = len(case.output_ids) < case.generate.gen_length
    assert answer.finish_reason == ("stop" if is_stopped else "length")
    if is_stopped:
        assert answer.stop_reason in case.generate.stopping_criteria


@pytest.mark.parametrize("name", ["text_stop", "img_square", "img_two_pad_stacked"])
def test_golden_through_chat(engine, golden_cases, name: str):
    """``LLM.chat`` writes the official prompt; without options the images are taken
    as the official evaluation takes them."""
    case = golden_cases[name]
    content = [{"type": "image_pil", "image_pil": i} for i in images_of(case)]
    content += [{"type": "text", "text": case.messages[0]}]
    (output,) = engine.llm.chat(
        [{"role": "user", "content": content}], sampling_of(case), use_tqdm=False
    )
    assert output.prompt == case.prompt or case.images
    assert len(output.prompt_token_ids) == case.prompt_len
    assert tuple(output.outputs[0].token_ids) == case.output_ids


def test_model_that_predicts_masks(
    start_engine, predicts_mask_checkpoint, golden_cases
):
    """The mask is not banned: it can be predicted, and be part of the answer."""
    case = golden_cases["text_predicts_mask"]
    engine = start_engine(predicts_mask_checkpoint)
    with recorded_transfers() as transfers:
        answer = engine.answer_case(case)
    check(case, answer, transfers)


def test_prompt_longer_than_the_limit_is_refused(
    start_engine, tiny_checkpoint, golden_cases
):
    """The official code cuts the prompt; we say how long it is and may be."""
    case = golden_cases["img_truncated"]
    engine = start_engine(tiny_checkpoint, hf_overrides=dict(case.config_overrides))
    start, end = case.visual_spans[0]
    full_length = len(case.input_ids) - 1 + (end - start)
    with pytest.raises(VLLMValidationError, match=f"{full_length} tokens") as error:
        engine.add_case(case)
    assert "at most 1400 tokens" in str(error.value)
    assert not engine.is_busy
    text = golden_cases["text_stop_first"]
    assert tuple(engine.answer_case(text).token_ids) == text.output_ids


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_all_at_once(engine, seed: int):
    """Requests that come and go at random steps get the tokens they get alone."""
    cases = {case.name: case for case in SAME_CHECKPOINT}
    waiting = list(cases.values())
    rng = random.Random(seed)
    rng.shuffle(waiting)
    while waiting:
        for _ in range(min(rng.choice([0, 0, 1, 1, 2, 4]), len(waiting))):
            case = waiting.pop()
            engine.add(prompt_of(case), sampling_of(case), case.name)
        engine.step()
    answers = engine.finish()
    assert {name: tuple(a.token_ids) for name, a in answers.items()} == {
        name: case.output_ids for name, case in cases.items()
    }
    assert engine.max_in_flight >= 8
    assert engine.free_blocks == engine.all_blocks
