# SPDX-License-Identifier: Apache-2.0
"""A picture that was seen before is not encoded again."""

import pytest

from tests.engine.harness import Engine, images_of, prompt_of, sampling_of


@pytest.fixture
def encoded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Visual tokens of every picture that the tower encodes."""
    engine.llm.llm_engine.reset_mm_cache()
    engine.core.reset_encoder_cache()
    tokens: list[int] = []
    model = engine.model
    embed_multimodal = model.embed_multimodal

    def count(**kwargs):
        embeddings = embed_multimodal(**kwargs)
        tokens.extend(len(embedding) for embedding in embeddings)
        return embeddings

    monkeypatch.setattr(model, "embed_multimodal", count)
    return tokens


def test_same_image_is_encoded_once(engine: Engine, golden_cases, encoded):
    """In requests after each other and at the same time."""
    case = golden_cases["img_small_2"]
    first = engine.answer_case(case)
    assert encoded == list(case.visual_tokens)
    for name in ("second", "third"):
        engine.add_case(case, name)
    answers = engine.finish()
    assert encoded == list(case.visual_tokens)
    for answer in (first, *answers.values()):
        assert tuple(answer.token_ids) == case.output_ids


def test_same_image_twice_in_a_request(engine: Engine, golden_cases, encoded):
    case = golden_cases["img_two_pad_stacked"]
    prompt = prompt_of(case)
    prompt["multi_modal_data"] = {"image": [images_of(case)[0]] * 2}
    answer = engine.answer(prompt, sampling_of(case))
    assert encoded == [case.visual_tokens[0]]
    assert len(answer.prompt_token_ids) == case.prompt_len


def test_other_mode_is_another_image(engine: Engine, golden_cases, encoded):
    """The same two pictures with and without newlines are not confused."""
    cases = [golden_cases[f"img_two_pad_{kind}"] for kind in ("stacked", "list")]
    for case in cases:
        assert tuple(engine.answer_case(case).token_ids) == case.output_ids
    assert encoded == [*cases[0].visual_tokens, *cases[1].visual_tokens]


def test_waiting_request_encodes_nothing_before_its_time(
    engine: Engine, golden_cases, encoded
):
    """Two requests with the same picture, admitted in the same iteration."""
    case = golden_cases["img_small_2"]
    engine.add_case(case, "one")
    engine.add_case(case, "two")
    assert encoded == []
    engine.step()
    assert encoded == list(case.visual_tokens)
    answers = engine.finish()
    for answer in answers.values():
        assert tuple(answer.token_ids) == case.output_ids
