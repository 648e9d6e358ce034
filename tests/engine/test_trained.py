# SPDX-License-Identifier: Apache-2.0
"""lladav-tiny answers questions about pictures that it was not trained on."""

import random

import pytest
from vllm import SamplingParams

from examples.tiny import pictures, prompts, questions
from tests.engine.harness import Engine
from vllm_lladav.tiny import TRAINED

NUM_QUESTIONS = 40


@pytest.fixture(scope="module")
def trained(start_engine) -> Engine:
    return start_engine(TRAINED, dtype="auto", max_num_seqs=NUM_QUESTIONS)


def share_right(engine: Engine, task: str, **args: object) -> float:
    """Of held-out questions, answered all at once."""
    rng = random.Random(f"test {task}")
    kinds = questions.WORD_KINDS if task == "word" else questions.SENTENCE_KINDS
    params = SamplingParams(temperature=0, max_tokens=None, extra_args=args)
    expected = {}
    while len(expected) < NUM_QUESTIONS:
        scene = pictures.draw_scene(rng, "heldout")
        asked = questions.ask(rng, scene, dict.fromkeys(kinds, 1.0))
        if asked is None:
            continue
        prompt = {
            "prompt": prompts.prompt_text(asked.question),
            "multi_modal_data": {"image": [pictures.draw(scene, rng).image]},
        }
        expected[engine.add(prompt, params)] = asked.answer
    answers = engine.finish()
    right = [answers[name].text == answer for name, answer in expected.items()]
    return sum(right) / len(right)


@pytest.mark.parametrize(
    ("task", "gen_length", "least"), [("word", 16, 0.9), ("sentence", 32, 0.8)]
)
def test_right_answers(trained: Engine, task: str, gen_length: int, least: float):
    exact = {"gen_length": gen_length, "prune_rate": 0}
    assert share_right(trained, task, **exact) >= least


def test_right_answers_fast_and_pruned(trained: Engine):
    """As ``make serve`` prunes."""
    args = {"gen_length": 32, "denoising": "fast", "prune_layer": 6}
    assert share_right(trained, "sentence", **args) >= 0.8
