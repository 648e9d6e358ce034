# SPDX-License-Identifier: Apache-2.0
"""Pruned requests: kept indices, tokens and KV blocks, alone and in company.

Long, because all of it shares the plain reference and one engine.
"""

import math
import random
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from tests.engine.harness import (
    KV_BLOCK,
    Engine,
    prompt_of,
    recorded_pruning,
    sampling_of,
)
from tests.golden.cases import GoldenCase
from tests.reference.decoder import Decoder
from tests.reference.loop import Arguments, generate
from tests.reference.pruning import PrunedLogits, Stage, fastv, similarity
from vllm_lladav.tiny.presets import MASK_ID, NUM_TOKENS
from vllm_lladav.worker.state import DenoisingState

PRUNED = ("prune_r50_k2_all", "prune_r75_k3_all")


@dataclass(frozen=True)
class Schedule:
    """A request's pruning, and the same for the reference."""

    name: str
    args: dict[str, Any]
    stages: tuple[Stage, ...]
    reference: dict[str, Any] = field(default_factory=dict)


SCHEDULES = [
    Schedule("fastv", {"prune_rate": 0.75}, ((1, 2, 0.75),)),
    Schedule("first_layer", {"prune_rate": 0.4, "prune_layer": 1}, ((1, 1, 0.4),)),
    Schedule(
        "after_the_last_layer",
        {"prune_rate": 0.6, "prune_layer": 4, "prune_queries": "last"},
        ((1, 4, 0.6),),
        {"queries": "last"},
    ),
    Schedule(
        "answer_compact",
        {
            "prune_rate": 0.8,
            "prune_layer": 3,
            "prune_queries": "answer",
            "prune_positions": "compact",
        },
        ((1, 3, 0.8),),
        {"queries": "answer", "compact": True},
    ),
    Schedule(
        "progressive",
        {"prune_stages": "1:1:0.3,1:3:0.5,3:2:0.5"},
        ((1, 1, 0.3), (1, 3, 0.5), (3, 2, 0.5)),
    ),
    Schedule(
        "late_answer_compact",
        {
            "prune_stages": "2:2:0.5,4:4:0.5",
            "prune_queries": "answer",
            "prune_positions": "compact",
        },
        ((2, 2, 0.5), (4, 4, 0.5)),
        {"queries": "answer", "compact": True},
    ),
    Schedule(
        "cached_prompt",
        {"prune_rate": 0, "cache": "prompt", "refresh_interval": 3},
        (),
        {"refresh_interval": 3},
    ),
    Schedule(
        "cached_pruned_prompt",
        {
            "prune_stages": "1:2:0.5,3:3:0.5",
            "cache": "prompt",
            "refresh_interval": 25,
        },
        ((1, 2, 0.5), (3, 3, 0.5)),
        {"refresh_interval": 25},
    ),
    Schedule(
        "cached_compact_prompt",
        {
            "prune_rate": 0.75,
            "prune_positions": "compact",
            "cache": "prompt",
            "refresh_interval": 2,
        },
        ((1, 2, 0.75),),
        {"refresh_interval": 2, "compact": True},
    ),
    Schedule(
        "prefix",
        {"prune_rate": 0, "cache": "prefix", "refresh_interval": 25},
        (),
        {"cache": "prefix", "refresh_interval": 25},
    ),
    Schedule(
        "dual",
        {"prune_rate": 0, "cache": "dual", "refresh_interval": 25},
        (),
        {"cache": "dual", "refresh_interval": 25},
    ),
    Schedule(
        "pruned_prefix",
        {"prune_rate": 0.75, "cache": "prefix", "refresh_interval": 25},
        ((1, 2, 0.75),),
        {"cache": "prefix", "refresh_interval": 25},
    ),
    Schedule(
        "pruned_compact_dual",
        {
            "prune_rate": 0.75,
            "prune_positions": "compact",
            "cache": "dual",
            "refresh_interval": 25,
        },
        ((1, 2, 0.75),),
        {"cache": "dual", "refresh_interval": 25, "compact": True},
    ),
    Schedule("guided", {"prune_rate": 0, "cfg_scale": 0.7}, (), {"cfg_scale": 0.7}),
    Schedule(
        "guided_pruned_twice",
        {"prune_stages": "1:2:0.5,3:3:0.5", "cfg_scale": 1.5},
        ((1, 2, 0.5), (3, 3, 0.5)),
        {"cfg_scale": 1.5},
    ),
    Schedule(
        "guided_pruned_compact_dual",
        {
            "prune_rate": 0.75,
            "prune_positions": "compact",
            "cache": "dual",
            "refresh_interval": 25,
            "cfg_scale": 0.3,
        },
        ((1, 2, 0.75),),
        {"cache": "dual", "refresh_interval": 25, "compact": True, "cfg_scale": 0.3},
    ),
    Schedule(
        "similarity",
        {"prune_rate": 0.5, "prune_policy": "similarity"},
        ((1, 2, 0.5),),
        {"score": similarity},
    ),
]


def sampling(case: GoldenCase, **pruning: Any) -> Any:
    """Eight positions in four steps of two blocks."""
    lengths = {"gen_length": 8, "block_length": 4, "steps": 4}
    return sampling_of(case, extra_args={**lengths, **pruning})


@pytest.fixture(scope="module")
def decoder(tiny_checkpoint) -> Decoder:
    return Decoder(tiny_checkpoint, NUM_TOKENS)


@pytest.mark.parametrize("name", PRUNED)
def test_kept_indices_of_the_goldens(engine: Engine, golden_cases, name: str):
    """Tokens are compared in test_goldens.py."""
    case = golden_cases[name]
    with recorded_pruning(engine) as stages:
        engine.answer_case(case, max_tokens=1)
    (pruned,) = stages[next(iter(stages))]
    assert pruned.kept.tolist() == case.tensors["prune_kept_visual"].tolist()
    scores = torch.from_numpy(case.tensors["prune_score"])
    torch.testing.assert_close(pruned.scores, scores, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
@pytest.mark.parametrize("name", ["img_square", "img_two_pad_list"])
def test_against_the_reference(
    engine: Engine, golden_cases, decoder: Decoder, name: str, schedule: Schedule
):
    """Kept positions of every stage, and tokens."""
    case = golden_cases[name]
    embed_prompt = DenoisingState._embed_prompt
    embeds = []

    def record(self: DenoisingState, *args: Any) -> torch.Tensor:
        embeds.append(embed_prompt(self, *args))
        return embeds[-1]

    with (
        patch.object(DenoisingState, "_embed_prompt", record),
        recorded_pruning(engine) as stages,
    ):
        answer = engine.answer(prompt_of(case), sampling(case, **schedule.args))
    logits = PrunedLogits(
        decoder,
        embeds[0].float(),
        case.visual_spans,
        schedule.stages,
        MASK_ID,
        **{"score": fastv, **schedule.reference},
    )
    prompt_ids = answer.prompt_token_ids
    args = Arguments(8, 4, 4, MASK_ID, case.step1.banned_ids)
    result = generate(prompt_ids, args, logits)
    assert kept_positions(case, next(iter(stages.values()), [])) == logits.kept
    assert tuple(answer.token_ids) == result.answer


def kept_positions(case: GoldenCase, stages) -> list[list[int]]:
    """Prompt positions of the visual tokens that each stage left."""
    left = np.concatenate([np.arange(a, b) for a, b in case.visual_spans])
    kept = []
    for pruned in stages:
        left = left[pruned.kept.numpy()]
        kept.append(left.tolist())
    return kept


def test_mixed_batch(engine: Engine, golden_cases):
    """Layers, rates, policies, late stages and requests that do not prune, in one
    batch with texts: every request gets the tokens that it gets alone."""
    square, pads = golden_cases["img_square"], golden_cases["img_two_pad_list"]
    text = golden_cases["text_32_8_32"]
    requests = {
        f"{case.name}/{schedule.name}": (case, sampling(case, **schedule.args))
        for case, schedule in zip([square, pads] * 8, SCHEDULES, strict=False)
    }
    requests["whole"] = square, sampling(square, prune_rate=0)
    requests["text"] = text, sampling_of(text)
    requests["uniform"] = pads, sampling(pads, prune_rate=0.5, prune_policy="uniform")
    requests["aggregated"] = (
        square,
        sampling(square, prune_rate=0.7, prune_layer=3, prune_policy="aggregated"),
    )
    requests["adaptive"] = (
        square,
        sampling(square, prune_rate=0.1, prune_policy="adaptive", prune_tau=0.6),
    )
    alone = {
        name: engine.answer(prompt_of(case), params).token_ids
        for name, (case, params) in requests.items()
    }
    assert len({tuple(tokens) for tokens in alone.values()}) > 8
    engine.reset_observations()
    rng = random.Random(3)
    for name, (case, params) in requests.items():
        engine.add(prompt_of(case), params, name)
        engine.step(rng.choice([0, 0, 0, 1]))
    answers = engine.finish()
    assert {name: answer.token_ids for name, answer in answers.items()} == alone
    assert engine.max_in_flight >= 8
    assert engine.free_blocks == engine.all_blocks


def test_blocks_go_back_in_the_step_that_prunes(engine: Engine, golden_cases):
    """And are those of the plan, stage by stage; the client learns the figures."""
    case = golden_cases["img_square"]
    num_visual = sum(case.visual_tokens)
    params = sampling(case, prune_stages="1:2:0.5,3:1:0.9")
    name = engine.add(prompt_of(case), params)
    left = num_visual - math.floor(num_visual * 0.5)
    last = left - math.floor(left * 0.9)
    for expected in (left, left, last):
        engine.step()
        num_tokens = case.prompt_len - num_visual + expected + 8
        assert engine.held_blocks == {name: -(-num_tokens // KV_BLOCK)}
        assert engine.all_blocks - engine.free_blocks == engine.held_blocks[name]
    answer = engine.finish()[name]
    all_blocks = -(-(case.prompt_len + 8) // KV_BLOCK)
    assert answer.last.kv_transfer_params == {
        "lladav": {
            "denoising_steps": 4,
            "tokens_per_step": 2.0,
            "visual_tokens": num_visual,
            "visual_tokens_kept": last,
            "kv_blocks_returned": all_blocks - -(-num_tokens // KV_BLOCK),
        }
    }


def test_bookkeeping_of_random_sequences(engine: Engine, golden_cases):
    """Admit, prune, abort, finish in any order: free + held = total at every step,
    and no request holds more than it needs."""
    square, pads = golden_cases["img_square"], golden_cases["img_two_pad_list"]
    schedules = [schedule.args for schedule in SCHEDULES]
    schedules += [{"prune_rate": 0}, {"prune_rate": 0.5, "prune_policy": "adaptive"}]
    rng = random.Random(0)
    names: list[str] = []
    for _ in range(40):
        action = rng.random()
        if action < 0.4 and len(engine.scheduler.requests) < 6:
            case = rng.choice([square, pads])
            params = sampling(case, **rng.choice(schedules))
            names.append(engine.add(prompt_of(case), params))
        elif action < 0.55 and names:
            engine.abort(names.pop(rng.randrange(len(names))))
        else:
            engine.step()
        assert engine.free_blocks + sum(engine.held_blocks.values()) == (
            engine.all_blocks
        )
        for request_id, progress in engine.scheduler._progress.items():
            held = engine.held_blocks.get(request_id.rpartition("-")[0], 0)
            num_slots = progress.step.num_slots
            num_sequences = progress.plan.params.num_sequences
            assert held in (0, num_sequences * -(-num_slots // KV_BLOCK))
    engine.finish()
    assert engine.free_blocks == engine.all_blocks
    assert not engine.scheduler._progress


@pytest.mark.parametrize("num_steps", [1, 2])
def test_abort_in_the_pruning_step(engine: Engine, golden_cases, num_steps: int):
    gone, other = golden_cases["img_square"], golden_cases["img_two_pad_list"]
    params = sampling(other, prune_rate=0.5)
    alone = engine.answer(prompt_of(other), params).token_ids
    name = engine.add(prompt_of(other), params)
    engine.add(prompt_of(gone), sampling(gone, prune_rate=0.9), "gone")
    engine.step(num_steps)
    engine.abort("gone")
    assert engine.finish()[name].token_ids == alone
    assert engine.free_blocks == engine.all_blocks


def test_adaptive_keeps_the_mass_and_no_more(engine: Engine, golden_cases):
    """The fewest tokens that hold tau of the attention, at most those of the rate;
    the scheduler frees what the worker reports."""
    case = golden_cases["img_square"]
    num_visual = sum(case.visual_tokens)

    def run(tau: float, rate: float) -> tuple[int, Any]:
        params = sampling(case, prune_rate=rate, prune_policy="adaptive", prune_tau=tau)
        with recorded_pruning(engine) as stages:
            name = engine.add(prompt_of(case), params)
            engine.step()
            engine.step()
            held = engine.held_blocks[name]
            answer = engine.finish()[name]
        (pruned,) = stages[name]
        num_tokens = case.prompt_len - num_visual + len(pruned.kept) + 8
        assert held == -(-num_tokens // KV_BLOCK)
        report = answer.last.kv_transfer_params["lladav"]
        assert report["visual_tokens_kept"] == len(pruned.kept)
        return len(pruned.kept), (pruned, answer)

    kept, (pruned, _) = run(tau=0.5, rate=0.01)
    ranked = pruned.scores.sort(descending=True).values.double()
    held = ranked[:kept].sum() / ranked.sum()
    assert held >= 0.5 > ranked[: kept - 1].sum() / ranked.sum()
    bound, (_, answer) = run(tau=1.0, rate=0.75)
    assert bound == num_visual - math.floor(0.75 * num_visual)
    fixed = engine.answer(prompt_of(case), sampling(case, prune_rate=0.75))
    assert answer.token_ids == fixed.token_ids


def test_random_policy_follows_the_seed(engine: Engine, golden_cases):
    case = golden_cases["img_square"]
    kept = []
    for seed in (5, 5, 6):
        params = sampling(case, prune_rate=0.5, prune_policy="random")
        params.seed = seed
        with recorded_pruning(engine) as stages:
            engine.answer(prompt_of(case), params)
        kept.append(next(iter(stages.values()))[0].kept.tolist())
    assert kept[0] == kept[1] != kept[2]
    assert len(kept[0]) == len(kept[2])


def test_uniform_policy_keeps_every_nth(engine: Engine, golden_cases):
    case = golden_cases["img_square"]
    with recorded_pruning(engine) as stages:
        params = sampling(case, prune_rate=0.75, prune_policy="uniform")
        engine.answer(prompt_of(case), params)
    gaps = np.diff(next(iter(stages.values()))[0].kept.numpy())
    assert set(gaps.tolist()) <= {3, 4}


@pytest.mark.parametrize("name", ["img_square", "text_32_8_32"])
def test_left_alone(engine: Engine, golden_cases, name: str):
    """Too few visual tokens, or none at all."""
    case = golden_cases[name]
    params = sampling_of(case)
    params.extra_args |= {"prune_rate": 0.9, "prune_min_visual_tokens": 1486}
    with recorded_pruning(engine) as stages:
        answer = engine.answer(prompt_of(case), params)
    assert not stages
    assert tuple(answer.token_ids) == case.output_ids


def test_half_is_pruned_by_default(engine: Engine, golden_cases):
    """After half of the layers, ranked by FastV over all rows."""
    case = golden_cases["img_square"]
    with recorded_pruning(engine) as stages:
        default = engine.answer(prompt_of(case), sampling(case))
    ((pruned,),) = stages.values()
    assert (pruned.stage.step, pruned.stage.layer, pruned.stage.rate) == (1, 2, 0.5)
    given = {"prune_rate": 0.5, "prune_policy": "fastv", "prune_queries": "all"}
    explicit = engine.answer(prompt_of(case), sampling(case, **given))
    assert default.token_ids == explicit.token_ids
