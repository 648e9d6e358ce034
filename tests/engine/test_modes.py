# SPDX-License-Identifier: Apache-2.0
"""Caches and confidence decoding; images and pruning with them: test_pruning.py."""

import random
from typing import Any

import pytest

from tests.engine.harness import Engine, prompt_of, sampling_of
from tests.golden.cases import GoldenCase
from tests.reference.decoder import Decoder
from tests.reference.loop import Arguments, generate
from tests.reference.pruning import PrunedLogits
from vllm_lladav.tiny.presets import EOT_ID, MASK_ID, NUM_TOKENS

CACHES = ("prompt", "prefix", "dual")


def sampling(case: GoldenCase, **args: Any) -> Any:
    params = sampling_of(case)
    params.extra_args |= args
    return params


@pytest.fixture(scope="module")
def decoder(tiny_checkpoint) -> Decoder:
    return Decoder(tiny_checkpoint, NUM_TOKENS)


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("name", ["text_32_8_32", "text_stop_blocks"])
def test_always_refreshed_is_exact(engine: Engine, golden_cases, name: str, cache: str):
    case = golden_cases[name]
    params = sampling(case, cache=cache, refresh_interval=1)
    assert tuple(engine.answer(prompt_of(case), params).token_ids) == case.output_ids


def test_masks_in_the_prompt_are_predicted_with_a_cache_too(
    engine: Engine, golden_cases
):
    case = golden_cases["text_mask_in_prompt"]
    params = sampling(case, cache="prompt", refresh_interval=9)
    assert tuple(engine.answer(prompt_of(case), params).token_ids) == case.output_ids


@pytest.mark.parametrize(
    "rule",
    [
        {"confidence_threshold": 0.05},
        {"confidence_threshold": 0.9},
        {"confidence_factor": 2.5},
        {"confidence_threshold": 0.2, "confidence_factor": 2.8},
    ],
    ids=str,
)
def test_confidence_decoding(
    engine: Engine, golden_cases, decoder: Decoder, rule: dict[str, float]
):
    """Tokens and number of steps of the reference."""
    case = golden_cases["text_32_8_32"]
    answer = engine.answer(prompt_of(case), sampling(case, **rule))
    args = Arguments(
        gen_length=32,
        block_length=8,
        steps=32,
        mask_id=MASK_ID,
        banned_ids=case.step1.banned_ids,
        threshold=rule.get("confidence_threshold"),
        factor=rule.get("confidence_factor"),
    )
    result = generate(
        case.input_ids,
        args,
        lambda ids: decoder.logits(decoder.embedding[ids], ids == MASK_ID),
    )
    assert tuple(answer.token_ids) == result.answer
    report = answer.last.kv_transfer_params["lladav"]
    assert report["denoising_steps"] == len(result.steps)
    assert report["tokens_per_step"] == round(32 / len(result.steps), 3)


def test_confidence_saves_steps(engine: Engine, golden_cases):
    case = golden_cases["text_32_8_32"]
    steps = []
    for threshold in (0, 0.1, 0.03):
        params = sampling(case, confidence_threshold=threshold)
        answer = engine.answer(prompt_of(case), params)
        assert len(answer.token_ids) == 32
        steps.append(answer.last.kv_transfer_params["lladav"]["denoising_steps"])
    assert steps[0] == 32 > steps[1] > steps[2] >= 4


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("name", ["text_stop", "text_stop_blocks"])
def test_nothing_is_computed_behind_a_stop(
    engine: Engine, golden_cases, decoder: Decoder, name: str, cache: str
):
    """Tokens of the reference; cached steps get shorter when the stop is there."""
    case = golden_cases[name]
    generate_args = case.generate
    args = Arguments(
        generate_args.gen_length,
        generate_args.block_length,
        generate_args.steps,
        MASK_ID,
        case.step1.banned_ids,
        stop_sequences=((EOT_ID,),),
    )
    num_blocks = generate_args.gen_length // generate_args.block_length
    logits = PrunedLogits(
        decoder,
        decoder.embedding[list(case.input_ids)],
        images=(),
        stages=(),
        mask_id=MASK_ID,
        cache=cache,
        refresh_interval=25,
        block_length=generate_args.block_length,
        steps_per_block=generate_args.steps // num_blocks,
        stop=(EOT_ID,),
    )
    result = generate(case.input_ids, args, logits)
    engine.add(prompt_of(case), sampling(case, cache=cache))
    engine.reset_observations()
    (answer,) = engine.finish().values()
    assert tuple(answer.token_ids) == result.answer
    assert result.stop is not None
    widths = engine.num_scheduled
    full = case.prompt_len + generate_args.gen_length
    assert widths[0] == full
    cached = [width for width in widths if width < full]
    assert cached[-1] < cached[0]
    assert len(widths) == len(result.steps)


@pytest.mark.parametrize("cache", CACHES)
def test_streams_finished_prefixes(engine: Engine, golden_cases, cache: str):
    """Every block at the latest when the next one begins."""
    case = golden_cases["text_32_8_32"]
    answer = engine.answer(prompt_of(case), sampling(case, cache=cache))
    assert sum(answer.deltas, []) == answer.token_ids
    assert len(answer.token_ids) == 32
    assert len([delta for delta in answer.deltas if delta]) >= 4


@pytest.mark.slow
def test_five_hundred_requests_of_all_modes(engine: Engine, golden_cases):
    """Of all modes, some of them aborted: every block comes back, and each request
    that finishes has the tokens of its kind."""
    text, image = golden_cases["text_16_16_40"], golden_cases["img_two_pad_list"]
    lengths = {"gen_length": 8, "block_length": 4, "steps": 4}
    kinds: list[tuple[GoldenCase, dict[str, Any]]] = [
        (text, {"cache": cache, "confidence_threshold": threshold})
        for cache in ("none", *CACHES)
        for threshold in (0, 0.05)
    ]
    kinds += [(text, {"cache": cache, "cfg_scale": 0.5}) for cache in ("none", "dual")]
    kinds += [
        (image, {"cache": cache, "prune_rate": 0.9, "prune_policy": policy})
        for cache, policy in zip(CACHES, ("fastv", "adaptive", "uniform"), strict=True)
    ]
    params = [sampling(case, **lengths, **args) for case, args in kinds]
    alone = [
        engine.answer(prompt_of(case), kind).token_ids
        for (case, _), kind in zip(kinds, params, strict=True)
    ]
    engine.reset_observations()
    rng = random.Random(1)
    weights = [8] * 8 + [4] * 2 + [1, 1, 1]
    kind_of: dict[str, int] = {}
    for _ in range(500):
        (kind,) = rng.choices(range(len(kinds)), weights)
        name = engine.add(prompt_of(kinds[kind][0]), params[kind])
        kind_of[name] = kind
        if rng.random() < 0.1:
            engine.abort(gone := rng.choice(list(kind_of)))
            del kind_of[gone]
        while len(engine.scheduler.requests) > 12:
            engine.step()
    answers = engine.finish()
    for name, kind in kind_of.items():
        assert answers[name].token_ids == alone[kind], kinds[kind]
    assert engine.max_in_flight >= 12
    assert engine.free_blocks == engine.all_blocks
    assert not engine.scheduler._progress
