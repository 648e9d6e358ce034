# SPDX-License-Identifier: Apache-2.0
"""The reference gives the official code's recorded results on text requests."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from tests.golden.cases import GoldenCase, load_cases
from tests.reference.decoder import Decoder
from tests.reference.loop import Arguments, generate, quotas
from vllm_lladav.tiny.presets import MASK_ID, NUM_TOKENS
from vllm_lladav.tiny.tokenizer import tokenizer_json

CASES = [
    case.name
    for case in load_cases().values()
    if not case.images and case.dllm_cache is None
]


@pytest.fixture(scope="module")
def encode():
    """Text -> ids without special tokens around them."""
    tokenizer = Tokenizer.from_str(json.dumps(tokenizer_json()))
    return lambda text: tuple(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.fixture(scope="module")
def decoder(tiny_checkpoint: Path) -> Decoder:
    return Decoder(tiny_checkpoint, NUM_TOKENS)


def logits_fn(case: GoldenCase, decoder: Decoder):
    """Logits of a sequence, guided where the case asks for it."""
    scale = case.generate.cfg_scale

    def guided_logits(token_ids: torch.Tensor) -> torch.Tensor:
        rows = token_ids == MASK_ID
        embeds = decoder.embedding[token_ids]
        logits = decoder.logits(embeds, rows)
        if scale > 0:
            embeds[: len(case.input_ids)] = decoder.embedding[MASK_ID]
            unguided = decoder.logits(embeds, rows)
            logits = unguided + (scale + 1) * (logits - unguided)
        return logits

    return guided_logits


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_text_goldens(name: str, golden_cases, request, encode):
    """Tokens, canvas, number of steps, and what every step selected, in order."""
    case = golden_cases[name]
    if case.head_gains:
        checkpoint = request.getfixturevalue("predicts_mask_checkpoint")
        decoder = Decoder(checkpoint, NUM_TOKENS)
    else:
        decoder = request.getfixturevalue("decoder")
    args = Arguments(
        gen_length=case.generate.gen_length,
        block_length=case.generate.block_length,
        steps=case.generate.steps,
        mask_id=MASK_ID,
        banned_ids=case.step1.banned_ids,
        stop_sequences=tuple(map(encode, case.generate.stopping_criteria)),
        suffix_ids=encode(case.generate.generation_suffix or ""),
    )
    result = generate(case.input_ids, args, logits_fn(case, decoder))
    assert result.output_ids == case.output_ids
    assert result.canvas == case.generated_ids_including_after_stop
    recorded = [(step.positions, step.was_mask) for step in case.steps]
    prompt_len = case.prompt_len
    assert [
        (tuple(p - prompt_len for p in step.positions), step.was_mask)
        for step in result.steps
    ] == recorded


def test_quotas_of_the_official_example():
    assert quotas(12, 5) == [3, 3, 2, 2, 2]
