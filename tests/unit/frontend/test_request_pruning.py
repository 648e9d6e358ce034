# SPDX-License-Identifier: Apache-2.0
"""What a client may ask of pruning, and how the rest is refused."""

import math
from dataclasses import replace
from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError

from tests.unit.resolving import ROOMY, resolved
from vllm_lladav.denoising.params import DenoisingParams
from vllm_lladav.options.options import ServerOptions
from vllm_lladav.pruning.params import PruneStage, PruningParams

PRUNING = ServerOptions(plugin="pruning")


def pruning(
    extra: dict[str, Any] | None = None, server: ServerOptions = PRUNING
) -> PruningParams | None:
    params, sampling = resolved(extra, server=server, max_tokens=16)
    again = DenoisingParams.from_values(params.to_values(), sampling.seed)
    assert again == params
    return params.pruning


def test_half_is_pruned_after_half_of_the_layers():
    assert pruning() == PruningParams((PruneStage(1, 2, 0.5),))
    deep = replace(ROOMY, num_layers=7)
    params, _ = resolved(server=PRUNING, limits=deep)
    assert params.pruning is not None
    assert params.pruning.stages[0].layer == 4


def test_without_the_plugin_nothing_is_pruned():
    assert pruning(server=ServerOptions()) is None
    with pytest.raises(VLLMValidationError, match="--plugin pruning") as error:
        pruning({"prune_rate": 0.5}, ServerOptions())
    assert error.value.parameter == "prune_rate"
    assert pruning({"prune_rate": 0}, ServerOptions()) is None
    with pytest.raises(VLLMValidationError, match="--plugin pruning"):
        pruning({"prune_rate": 0, "prune_layer": 2}, ServerOptions())


def test_rate_zero_is_off():
    assert pruning({"prune_rate": 0}) is None
    off = ServerOptions(plugin="pruning", prune_rate=0.0)
    assert pruning(server=off) is None
    assert pruning({"prune_rate": 0.25}, off) is not None


def test_everything_of_pruning_set_by_the_client():
    extra = {
        "prune_stages": "1:2:0.5,3:4:0.25",
        "prune_policy": "adaptive",
        "prune_queries": "last",
        "prune_positions": "compact",
        "prune_min_visual_tokens": 7,
        "prune_tau": 0.5,
    }
    stages = (PruneStage(1, 2, 0.5), PruneStage(3, 4, 0.25))
    expected = PruningParams(stages, "adaptive", "last", "compact", 7, 0.5)
    assert pruning(extra) == expected


def test_stages_of_the_server_yield_to_the_rate_of_a_request():
    server = ServerOptions(plugin="pruning", prune_stages="1:1:0.5,500:2:0.5")
    stages = (PruneStage(1, 1, 0.5), PruneStage(500, 2, 0.5))
    # A server's late stage is not an error of a request with few steps.
    assert pruning(server=server) == PruningParams(stages)
    assert pruning({"prune_layer": 3}, server) == PruningParams(
        (PruneStage(1, 3, 0.5),)
    )


def test_aggregated_attention_is_that_of_the_answer():
    aggregated = pruning({"prune_policy": "aggregated"})
    assert aggregated is not None and aggregated.queries == "answer"
    everywhere = ServerOptions(plugin="pruning", prune_queries="all")
    aggregated = pruning({"prune_policy": "aggregated"}, everywhere)
    assert aggregated is not None and aggregated.queries == "all"


def test_random_pruning_has_a_seed():
    """The same for all tensor-parallel ranks."""
    _, sampling = resolved({"prune_policy": "random"}, server=PRUNING)
    assert sampling.seed is not None
    _, sampling = resolved({"prune_policy": "fastv"}, server=PRUNING)
    assert sampling.seed is None


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"prune_rate": 1}, ["prune_rate", "below 1", "1"]),
        ({"prune_rate": -0.5}, ["prune_rate", "-0.5"]),
        ({"prune_rate": math.nan}, ["prune_rate", "finite", "nan"]),
        ({"prune_rate": "0.5"}, ["prune_rate", "number", "'0.5'"]),
        ({"prune_rate": True}, ["prune_rate", "number", "True"]),
        ({"prune_layer": 0}, ["prune_layer", "at least 1", "0"]),
        ({"prune_layer": 5}, ["prune_layer", "at most 4", "5"]),
        ({"prune_layer": 1.5}, ["prune_layer", "integer", "1.5"]),
        ({"prune_policy": "best"}, ["prune_policy", "fastv", "'best'"]),
        ({"prune_queries": "none"}, ["prune_queries", "answer", "'none'"]),
        ({"prune_positions": 1}, ["prune_positions", "original", "1"]),
        ({"prune_min_visual_tokens": -1}, ["prune_min_visual_tokens", "-1"]),
        ({"prune_tau": 0}, ["prune_tau", "above 0", "0"]),
        ({"prune_tau": 1.5}, ["prune_tau", "at most 1", "1.5"]),
        ({"prune_stages": "1:5:0.5"}, ["prune_stages", "at most 4", "layer 5"]),
        ({"prune_stages": "1:2:1.0"}, ["prune_stages", "'1:2:1.0'"]),
        ({"prune_stages": ""}, ["prune_stages", "step:layer:rate"]),
        ({"prune_stages": "2:1:0.5,1:1:0.5"}, ["prune_stages", "must come after"]),
        ({"prune_stages": "17:1:0.5"}, ["prune_stages", "steps", "16", "17"]),
        ({"prune_stages": "1:1:0.5", "prune_rate": 0.5}, ["prune_stages", "without"]),
        # Checked although nothing is pruned.
        ({"prune_rate": 0, "prune_layer": 9}, ["prune_layer", "9"]),
    ],
)
def test_bad_pruning_is_refused(extra: dict[str, Any], words: list[str]):
    with pytest.raises(VLLMValidationError) as error:
        pruning(extra)
    assert error.value.parameter == words[0]
    for word in words:
        assert word in str(error.value)
