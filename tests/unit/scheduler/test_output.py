# SPDX-License-Identifier: Apache-2.0
"""What comes of a step's output: tokens, ends, KV blocks, statistics."""

import pytest
from vllm.config import VllmConfig
from vllm.v1.engine import FinishReason
from vllm.v1.request import RequestStatus

from tests.unit.scheduler.rig import WORD, Rig, make_request
from vllm_lladav.pruning.params import PruneStage, PruningParams


def test_answer_of_full_length(config: VllmConfig):
    rig = Rig(config, budget=100)
    rig.add(make_request("a", 12))
    rig.step(3)
    assert rig.answers["a"] == [WORD] * 3
    rig.finish()
    end = rig.ended["a"]
    assert (end.finish_reason, end.stop_reason) == (FinishReason.LENGTH, None)
    assert end.kv_transfer_params is not None
    assert end.kv_transfer_params["lladav"]["denoising_steps"] == 8
    assert end.kv_transfer_params["lladav"]["tokens_per_step"] == 1.0


@pytest.mark.parametrize("position", [0, 3])
def test_stop_is_named(config: VllmConfig, position: int):
    """Also where nothing is left to emit: vLLM looks at new tokens only."""
    rig = Rig(config, budget=100)
    rig.add(make_request("a", 12, stops=("end of it",)))
    rig.stop_at["a"] = position
    rig.finish()
    assert rig.answers["a"] == [WORD] * position
    end = rig.ended["a"]
    assert (end.finish_reason, end.stop_reason) == (FinishReason.STOP, "end of it")
    # Then an empty one, in which vLLM lets go of the request.
    assert rig.scheduled == [{"a": 20}] * (position + 1) + [{}]


def test_stop_comes_after_its_tokens(config: VllmConfig):
    """vLLM takes the last token of an output that stops for the stop itself."""
    rig = Rig(config, budget=100)
    rig.add(make_request("a", 12, stops=("end of it",)))
    rig.stop_at["a"] = 3
    rig.finish()
    assert rig.ended["a"].new_token_ids == []


def test_figures_come_before_the_front_end_ends_it(config: VllmConfig):
    """It may take any output for the last one where it looks for stops in the text."""
    rig = Rig(config, budget=100)
    rig.add(make_request("a", 12, text_stops=("x",)), make_request("b", 12))
    rig.step()
    figures = {name: part.kv_transfer_params for name, part in rig.parts.items()}
    assert figures["a"] is not None and figures["b"] is None
    assert figures["a"]["lladav"]["denoising_steps"] == 1
    rig.scheduler.finish_requests("a", RequestStatus.FINISHED_ABORTED)
    rig.finish()
    assert sorted(sum((s.tokens_per_step for s in rig.stats), [])) == [1, 1]


def test_step_in_vain(config: VllmConfig):
    """The next step is under way when the output says that the answer has ended."""
    rig = Rig(config, budget=100)
    free = rig.free_blocks
    rig.add(make_request("a", 12, stops=("end",)))
    rig.stop_at["a"] = 0
    first, second = rig.dispatch(), rig.dispatch()
    assert rig.scheduled == [{"a": 20}, {"a": 20}]
    rig.receive(first)
    assert "a" in rig.ended
    rig.receive(second)
    assert rig.answers["a"] == []
    assert rig.free_blocks == free


@pytest.mark.parametrize("cache, waits", [("prompt", False), ("dual", True)])
def test_next_step_waits_for_the_block(config: VllmConfig, cache: str, waits: bool):
    rig = Rig(config, budget=100)
    rig.add(make_request("a", 12, cache=cache, refresh_interval=9, block_length=4))
    first = rig.dispatch()
    rig.dispatch()
    assert rig.scheduled[1] == ({} if waits else {"a": 8})
    rig.receive(first)
    if waits:
        rig.dispatch()
        assert rig.scheduled[2] == {"a": 4}


def test_kv_blocks_return_at_dispatch(config: VllmConfig):
    """64 tokens are 8 KV blocks; 24 of 32 visual tokens go, which leaves 5."""
    rig = Rig(config, budget=100)
    free = rig.free_blocks
    pruning = PruningParams((PruneStage(1, 2, 0.75),))
    rig.add(make_request("a", 56, images=(20, 12), pruning=pruning))
    output = rig.dispatch()
    assert rig.scheduled == [{"a": 64}]
    assert free - rig.free_blocks == 5
    rig.receive(output)
    rig.step()
    assert rig.scheduled[-1] == {"a": 40}
    first, second = rig.stats
    assert (first.num_visual_tokens, first.num_visual_tokens_pruned) == (32, 24)
    assert (first.num_images, first.num_kv_blocks_returned) == (2, 3)
    assert (second.num_visual_tokens_pruned, second.num_kv_blocks_returned) == (0, 0)
    assert first.num_drafts + second.num_drafts == 2
    assert first.num_draft_tokens + second.num_draft_tokens == 16
    assert len(first.step_seconds) == len(second.step_seconds) == 1
    rig.finish()
    figures = rig.ended["a"].kv_transfer_params["lladav"]
    assert figures["kv_blocks_returned"] == 3
    assert figures["visual_tokens_kept"] == 8
    assert rig.free_blocks == free


def test_aborted_request_leaves_nothing(config: VllmConfig):
    rig = Rig(config, budget=100)
    free = rig.free_blocks
    rig.add(make_request("a", 12), make_request("b", 12))
    rig.step()
    output = rig.dispatch()
    rig.scheduler.finish_requests("a", RequestStatus.FINISHED_ABORTED)
    rig.receive(output)
    rig.finish()
    assert list(rig.ended) == ["b"]
    assert not rig.scheduler._progress
    assert rig.free_blocks == free
