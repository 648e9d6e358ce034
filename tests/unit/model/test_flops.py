# SPDX-License-Identifier: Apache-2.0
"""The formula against torch's own count of a plain PyTorch model, and by hand.

Long, because all of it shares the model that counts.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, SiglipVisionConfig, SiglipVisionModel

from tests.canvas import OneCanvas
from tests.reference.decoder import Cached, Decoder
from vllm_lladav.denoising.params import DenoisingParams
from vllm_lladav.denoising.plan import StepIndex, StepPlan
from vllm_lladav.model.flops import (
    Breakdown,
    StepMasks,
    planned_steps,
    request_flops,
    vision_flops,
)
from vllm_lladav.model.lladav.config import register_config
from vllm_lladav.model.lladav.family import LLADAV
from vllm_lladav.model.shape import ModelShape, VisionShape
from vllm_lladav.pruning.params import PruneStage, PruningParams, num_kept
from vllm_lladav.pruning.policies import policy_of
from vllm_lladav.pruning.policy import View
from vllm_lladav.pruning.scores import attention_received

MASK = 0
END = 9
NUM_TOKENS = 1000  # Rows of the head: the real one takes all the time.
PROMPT_LEN = 50
IMAGES = (12, 21)

ONE_STAGE = (PruneStage(1, 2, 0.75),)
STAGES = (PruneStage(1, 1, 0.3), PruneStage(1, 3, 0.5), PruneStage(4, 4, 0.9))
PRUNINGS = {
    "none": None,
    "fastv": PruningParams(ONE_STAGE),
    "after_the_last_layer": PruningParams((PruneStage(2, 4, 0.5),)),
    "rows_of_the_answer": PruningParams(STAGES, queries="answer"),
    "last_row": PruningParams(STAGES, queries="last"),
    "aggregated": PruningParams(STAGES, "aggregated", queries="answer"),
    "similarity": PruningParams(STAGES, "similarity"),
    "uniform": PruningParams(STAGES, "uniform"),
    "too_few_visual_tokens": PruningParams(ONE_STAGE, min_visual_tokens=34),
}
LENGTHS = {  # gen_length, block_length, steps
    "one_block": (8, 8, 8),
    "blocks": (12, 6, 4),
    "uneven": (7, 7, 5),
    "more_steps": (12, 6, 12),
    "more_steps_than_masks": (4, 2, 8),
    "two_and_two": (4, 2, 4),
}


@pytest.fixture(scope="module")
def decoder(tiny_checkpoint: Path) -> Decoder:
    return Decoder(tiny_checkpoint, NUM_TOKENS)


@pytest.fixture(scope="module")
def shape(decoder: Decoder) -> ModelShape:
    return ModelShape(
        hidden_size=decoder.config["hidden_size"],
        intermediate_size=decoder.config["intermediate_size"],
        num_layers=decoder.config["num_hidden_layers"],
        num_heads=decoder.num_heads,
        num_kv_heads=decoder.num_heads,
        head_dim=decoder.head_dim,
        vocab_rows=NUM_TOKENS,
    )


def make_plan(
    lengths: str,
    pruning: str,
    cache: str = "none",
    refresh_interval: int = 1,
    **changes: Any,
) -> StepPlan:
    gen_length, block_length, steps = LENGTHS[lengths]
    params = DenoisingParams(
        gen_length=gen_length,
        block_length=block_length,
        steps=steps,
        temperature=0.0,
        remasking="low_confidence",
        seed=None,
        max_answer_tokens=gen_length,
        suffix_token_ids=(7, 8),
        pruning=PRUNINGS[pruning],
        cache=cache,
        refresh_interval=refresh_interval,
        **changes,
    )
    return StepPlan(params, PROMPT_LEN, IMAGES)


def is_pruned(params: DenoisingParams, step: int) -> bool:
    pruning = params.pruning
    if pruning is None or pruning.min_visual_tokens > sum(IMAGES):
        return False
    return any(stage.step == step + 1 for stage in pruning.stages)


def computed(params: DenoisingParams, index: StepIndex, prompt_len: int) -> range:
    """Positions that a step computes, from what the caches are said to do."""
    length = prompt_len + params.gen_length + 2
    count = index.step if params.cache == "prompt" else index.step_in_block
    if (
        params.cache == "none"
        or count % params.refresh_interval == 0
        or is_pruned(params, index.step)
    ):
        return range(length)
    if params.cache == "prompt":
        return range(prompt_len, length)
    first = prompt_len + index.block * params.block_length
    end = length if params.cache == "prefix" else first + params.block_length
    if index.stop is not None:
        end = min(end, max(prompt_len + index.stop, first + 1))
    return range(first, end)


def counted_flops(
    decoder: Decoder,
    plan: StepPlan,
    steps: list[StepMasks] | None = None,
    end: int | None = None,
) -> int:
    """Denoise with a plain decoder and random confidences, and let torch count.

    Args:
        steps: the steps that ran are added to it.
        end: position in the canvas at which the end token is predicted.
    """
    canvas = OneCanvas(plan.params, [1] * PROMPT_LEN, MASK)
    predicted = np.ones(len(canvas), np.int64)
    if end is not None:
        predicted[end - len(canvas.tail)] = END
    left = torch.arange(len(canvas))
    kv: dict = {}
    num_visual = plan.num_visual
    counter = FlopCounterMode(display=False)
    total = 0
    while not canvas.finished:
        step = Ranking(plan.params, canvas, num_visual)
        rows = computed(plan.params, canvas.index, canvas.prompt_len)
        first = rows.start
        embeds = torch.zeros(len(rows), decoder.config["hidden_size"])
        keep = step.keep if step.stages else None
        with counter:  # Which starts at zero.
            hidden_states = decoder.hidden_states(
                embeds,
                torch.tensor(rows),
                keep,
                Cached(kv, left[rows], left),
            )
            num_dropped, num_visual = num_visual - step.num_visual, step.num_visual
            left = left[num_dropped:]
            canvas.keep_prompt(np.arange(canvas.prompt_len - num_dropped))
            candidates = canvas.candidates(first)
            if steps is not None:
                masks = len(canvas.masks())
                steps.append(StepMasks(canvas.index, len(candidates), masks))
            _ = hidden_states[candidates - first] @ decoder.head.T
        total += counter.get_total_flops()
        canvas.transfer(
            candidates,
            predicted[candidates - len(canvas)],
            torch.rand(len(candidates), dtype=torch.float64),
            lambda positions: np.ones(len(positions), np.int64),
        )
    return total


@dataclass
class Ranking:
    """Ranks as the engine's policies do, and drops the first visual tokens."""

    params: DenoisingParams
    canvas: OneCanvas
    num_visual: int

    def __post_init__(self) -> None:
        self.stages: list[PruneStage] = []
        if is_pruned(self.params, self.canvas.step):
            assert self.params.pruning is not None
            stages = self.params.pruning.stages
            self.stages = [s for s in stages if s.step == self.canvas.step + 1]

    def keep(
        self, layer: int, weights: torch.Tensor, keys: torch.Tensor
    ) -> torch.Tensor | None:
        if not self.stages:
            return None
        stage, num_tokens = self.stages[0], weights.shape[-1]
        left = num_kept(self.num_visual, len(IMAGES), stage.rate)
        pruning = self.params.pruning
        assert pruning is not None
        policy = policy_of(pruning.policy)
        if policy.observes(layer, stage.layer):
            masks = len(self.canvas.masks())
            rows = {"all": num_tokens, "answer": masks, "last": 1}[pruning.queries]
            heads = keys.transpose(0, 1)
            policy.score(
                View(
                    step=stage.step,
                    layer=layer,
                    query=heads,
                    key=heads,
                    scale=1.0,
                    rows=torch.arange(rows),
                    visual=torch.arange(self.num_visual),
                    num_kept=left,
                    seed=None,
                    attention_received=attention_received,
                )
            )
        if layer < stage.layer:
            return None
        self.stages.pop(0)
        num_dropped, self.num_visual = self.num_visual - left, left
        return torch.arange(num_dropped, num_tokens)


@pytest.mark.parametrize(
    ("lengths", "pruning"),
    [
        *(("blocks", pruning) for pruning in PRUNINGS),
        *((lengths, "none") for lengths in LENGTHS if lengths != "blocks"),
        *((lengths, "aggregated") for lengths in LENGTHS if lengths != "blocks"),
    ],
)
def test_decoder(decoder: Decoder, shape: ModelShape, lengths: str, pruning: str):
    plan = make_plan(lengths, pruning)
    assert request_flops(shape, plan).total == counted_flops(decoder, plan)


@pytest.mark.parametrize("cache", ["prompt", "prefix", "dual"])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_cached(decoder: Decoder, shape: ModelShape, lengths: str, cache: str):
    """Cached steps compute fewer rows, which attend to all that is left."""
    for pruning, interval in (("none", 3), ("fastv", 25), ("last_row", 2)):
        plan = make_plan(lengths, pruning, cache, interval)
        assert request_flops(shape, plan).total == counted_flops(decoder, plan)


SMALL = ModelShape(
    hidden_size=2,
    intermediate_size=3,
    num_layers=4,
    num_heads=1,
    num_kv_heads=1,
    head_dim=2,
    vocab_rows=5,
)


@pytest.mark.parametrize(
    "pruning, projections, attention, scores",
    [
        # Rows of the steps: all of the 56 tokens, 2 of the block, and that again.
        ("none", 4 * (56 + 2 + 56 + 2), 4 * 56 * (56 + 2 + 56 + 2), 0),
        # 24 visual tokens go behind layer 2 of 4, which 56 rows are ranked for.
        (
            "fastv",
            2 * (56 + 32) + 4 * (2 + 32 + 2),
            2 * (56 * 56 + 32 * 32) + 4 * 32 * (2 + 32 + 2),
            56 * 56,
        ),
    ],
)
def test_by_hand(pruning: str, projections: int, attention: int, scores: int):
    """Two blocks of two masks, a step for each mask: 2, 1, 2 and 1 are candidates."""
    plan = make_plan("two_and_two", pruning, "dual", refresh_interval=25)
    assert SMALL.layer_weights == 34
    assert request_flops(SMALL, plan) == Breakdown(
        projections=2 * 34 * projections,
        attention=2 * 2 * 2 * attention,
        head=2 * 2 * 5 * (2 + 1 + 2 + 1),
        scores=2 * 2 * scores,
    )


def test_guidance_doubles_the_decoder(shape: ModelShape):
    plan = make_plan("blocks", "fastv")
    guided = replace(plan, params=replace(plan.params, cfg_scale=0.5))
    once, twice = request_flops(shape, plan), request_flops(shape, guided)
    assert twice.projections == 2 * once.projections
    assert twice.attention == 2 * once.attention
    assert (twice.head, twice.scores) == (once.head, once.scores)


@pytest.mark.parametrize("cache", ["none", "prompt", "prefix", "dual"])
@pytest.mark.parametrize("pruning", ["none", "rows_of_the_answer"])
@pytest.mark.parametrize(
    "changes", [{"confidence_threshold": 0.7}, {"end_token_id": END}], ids=str
)
def test_steps_that_were_seen(
    decoder: Decoder, shape: ModelShape, cache: str, pruning: str, changes: dict
):
    """Which steps run, and with how many masks, is up to the answer."""
    plan = make_plan("more_steps", pruning, cache, 3, **changes)
    steps: list[StepMasks] = []
    torch.manual_seed(0)
    counted = counted_flops(decoder, plan, steps, end=3)
    assert request_flops(shape, plan, steps=steps).total == counted
    assert 0 < len(steps) < plan.params.steps
    assert counted < request_flops(shape, plan).total


@pytest.mark.parametrize("cache", ["none", "prompt", "prefix", "dual"])
@pytest.mark.parametrize(
    "threshold, steps_run", [(1.0, (6, 6)), (1e-9, (1, 1))], ids=["one", "all"]
)
def test_steps_that_are_known_by_number(
    decoder: Decoder, shape: ModelShape, cache: str, threshold: float, steps_run: tuple
):
    """Exact where every step of a block transfers equally many masks."""
    plan = make_plan("more_steps", "fastv", cache, 3, confidence_threshold=threshold)
    steps = planned_steps(plan.params, steps_run)
    counted = counted_flops(decoder, plan)
    assert request_flops(shape, plan, steps=steps).total == counted


def test_fewer_steps_than_planned(shape: ModelShape):
    """A fixed number of transfers is the same in the steps that run."""
    plan = make_plan("more_steps", "fastv")
    every = list(planned_steps(plan.params))
    assert every == list(planned_steps(plan.params, (6, 6)))
    assert every[:8] == list(planned_steps(plan.params, (6, 2)))


def test_vision():
    """SigLIP of transformers without its last layer, post-norm and head."""
    config = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=56,
        patch_size=14,
        vision_use_head=False,
    )
    config._attn_implementation = "eager"  # Torch counts no fused kernel of CPUs.
    tower = SiglipVisionModel(config)
    projector = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        projector(tower(torch.zeros(5, 3, 56, 56)).last_hidden_state)
    vision = VisionShape(
        hidden_size=32,
        intermediate_size=48,
        num_layers=3,
        tile_tokens=16,
        patch_values=3 * 14**2,
        projector_depth=2,
    )
    shape = ModelShape(64, 128, 1, 2, 2, 32, 100, vision)
    assert vision_flops(shape, 5) == Breakdown(vision=counter.get_total_flops())


def test_vision_runs_once(shape: ModelShape):
    vision = VisionShape(32, 48, 3, 16, 588, 2)
    shape, plan = replace(shape, vision=vision), make_plan("blocks", "fastv")
    with_tiles = request_flops(shape, plan, num_tiles=3)
    assert with_tiles == request_flops(shape, plan) + vision_flops(shape, 3)


def test_shape_of_a_checkpoint(tiny_checkpoint: Path, decoder: Decoder):
    """The decoder's weights are those of the files; the tower's last layer is
    stored nowhere and does not run."""
    register_config()
    config = AutoConfig.from_pretrained(tiny_checkpoint)
    shape = LLADAV.shape(config, vocab_rows=NUM_TOKENS)
    layer = [
        weight.numel()
        for name, weight in decoder.weights.items()
        if name.startswith("model.layers.0.") and weight.ndim == 2
    ]
    assert shape.layer_weights == sum(layer)
    tower = "model.vision_tower.vision_tower.vision_model."
    stored = {
        name.removeprefix(tower + "encoder.layers.").split(".")[0]
        for name in decoder.weights
        if name.startswith(tower + "encoder.layers.")
    }
    patch = decoder.weights[tower + "embeddings.patch_embedding.weight"]
    places = decoder.weights[tower + "embeddings.position_embedding.weight"]
    assert shape.vision == VisionShape(
        hidden_size=len(patch),
        intermediate_size=config.vision_config.intermediate_size,
        num_layers=len(stored),
        tile_tokens=len(places),
        patch_values=patch[0].numel(),
        projector_depth=2,
    )


def test_total():
    whole = Breakdown(projections=60, attention=20, head=10, vision=10)
    assert whole.total == 100


@pytest.mark.parametrize("changes", [{}, {"confidence_threshold": 0.9}], ids=str)
def test_steps_past_the_masks_are_not_enumerated(changes: dict):
    plan = make_plan("more_steps_than_masks", "none", **changes)
    endless = replace(plan.params, steps=2 * (2**31 - 1))
    steps = [(masks.index, masks.candidates) for masks in planned_steps(endless)]
    assert steps == [((0, 0, 0, None), 2), ((1, 0, 1, None), 1)] + [
        ((2, 1, 0, None), 2),
        ((3, 1, 1, None), 1),
    ]
