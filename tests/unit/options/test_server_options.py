# SPDX-License-Identifier: Apache-2.0
"""Options of a server: defaults, validation, presets."""

from types import SimpleNamespace
from typing import Any

import pytest

from vllm_lladav.denoising.resolve import check_depth
from vllm_lladav.options.options import PRESETS, SERVER_OPTIONS, ServerOptions
from vllm_lladav.options.reading import read_server, server_of


def prune(**options: Any) -> dict[str, Any]:
    return {
        "plugin": "pruning",
        **{f"prune_{name}": value for name, value in options.items()},
    }


def test_defaults_are_those_of_the_official_demo():
    config = ServerOptions()
    assert (config.gen_length, config.block_length) == (128, 128)
    assert (config.tokens_per_step, config.remasking) == (1, "low_confidence")
    assert (config.plugin, config.max_gen_length) == ("none", 1024)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"plugin": "prune"}, ["plugin", "none, pruning", "'prune'"]),
        ({"remasking": "best"}, ["remasking", "low_confidence, random", "'best'"]),
        ({"gen_length": 0}, ["gen_length", "at least 1", "0"]),
        ({"gen_length": 1.5}, ["gen_length", "integer", "1.5"]),
        ({"block_length": True}, ["block_length", "integer", "True"]),
        ({"tokens_per_step": "2"}, ["tokens_per_step", "integer", "'2'"]),
        ({"max_gen_length": -1}, ["max_gen_length", "at least 1", "-1"]),
        (
            {"gen_length": 65, "max_gen_length": 64},
            ["gen_length (65)", "max_gen_length (64)"],
        ),
        ({"gen_lenght": 1, "stps": 2}, ["gen_lenght", "stps", "known are", "plugin"]),
        ({"cache": "all"}, ["cache", "none, prompt", "'all'"]),
        ({"refresh_interval": 0}, ["refresh_interval", "at least 1", "0"]),
        ({"confidence_threshold": 2}, ["confidence_threshold", "to 1", "2"]),
        ({"confidence_factor": -1.0}, ["confidence_factor", "-1.0"]),
        ({"denoising": "best"}, ["denoising", "exact, fast", "'best'"]),
        ({"denoising": ["fast"]}, ["denoising", "exact, fast", "['fast']"]),
        ({"cfg_scale": -0.5}, ["cfg_scale", "at least 0", "-0.5"]),
        ({"full_step_tokens": -1}, ["full_step_tokens", "at least 0", "-1"]),
        ({"prune_rate": 0.3}, ["prune_rate", "--plugin pruning", "0.3"]),
        (prune(rate=1), ["prune_rate", "at least 0", "below 1", "1"]),
        (prune(rate=-0.1), ["prune_rate", "-0.1"]),
        (prune(rate=float("nan")), ["prune_rate", "finite", "nan"]),
        (prune(rate="0.5"), ["prune_rate", "number", "'0.5'"]),
        (prune(layer=0), ["prune_layer", "at least 1", "0"]),
        (prune(layer=2.5), ["prune_layer", "integer", "2.5"]),
        (prune(policy="best"), ["prune_policy", "fastv", "'best'"]),
        (prune(queries="some"), ["prune_queries", "all, answer, last", "'some'"]),
        (prune(positions="new"), ["prune_positions", "original, compact", "'new'"]),
        (prune(min_visual_tokens=-1), ["prune_min_visual_tokens", "-1"]),
        (prune(tau=0), ["prune_tau", "above 0", "0"]),
        (prune(stages="1:2:1"), ["prune_stages", "step:layer:rate", "'1:2:1'"]),
        (prune(stages="2:2:.5,1:3:.5"), ["prune_stages", "after the stage before"]),
        (prune(stages=3), ["prune_stages", "3"]),
        (prune(stages="1:2:.5", layer=2), ["prune_stages", "without", "prune_layer"]),
    ],
)
def test_bad_values_are_refused(values, words):
    """Every error names the option, its value and what is allowed."""
    with pytest.raises(ValueError) as error:
        read_server(values)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("values", [["gen_length"], "gen_length", 5])
def test_options_must_be_an_object(values):
    with pytest.raises(ValueError, match=r'additional_config\["lladav"\]'):
        read_server(values)


@pytest.mark.parametrize(
    ("additional", "gen_length"),
    [({}, 128), ({"other": 1}, 128), ({"lladav": {"gen_length": 9}}, 9), (None, 128)],
)
def test_read_from_the_configuration_of_vllm(additional, gen_length):
    vllm_config: Any = SimpleNamespace(additional_config=additional)
    assert server_of(vllm_config).gen_length == gen_length


@pytest.mark.parametrize("options", [prune(layer=5), prune(stages="1:1:.5,2:5:.5")])
def test_layers_past_the_depth_are_refused(options):
    server = read_server(options)
    check_depth(server, 5)
    with pytest.raises(ValueError, match="at most 4, the model's depth.*5"):
        check_depth(server, 4)


# ----------------------------------------------------------------- set or not set
def test_what_needs_the_plugin_is_refused_whatever_its_value():
    """Also where it is the default: not set is something else."""
    for name, option in SERVER_OPTIONS.items():
        if option.plugin is None or option.default is None:
            continue
        with pytest.raises(ValueError, match=f"{name} needs --plugin pruning"):
            read_server({name: option.default})
        assert name in read_server({"plugin": "pruning", name: option.default}).given
    # Who asks for no pruning gets none.
    assert read_server({"prune_rate": 0}).prune_rate == 0


def test_null_is_not_set():
    options = read_server({"prune_rate": None, "gen_length": None, "cache": None})
    assert options == ServerOptions()


def test_a_preset_gives_way_to_options():
    fast = read_server({"denoising": "fast", "refresh_interval": 3})
    assert (fast.cache, fast.refresh_interval) == ("dual", 3)
    assert fast.confidence_threshold > 0
    exact = read_server({"cache": "prompt"})
    assert (exact.denoising, exact.cache) == ("exact", "prompt")


def test_presets_set_the_same_options():
    """What one preset sets, the other sets back."""
    exact, fast = PRESETS["exact"], PRESETS["fast"]
    assert exact.keys() == fast.keys()
    assert exact == {
        "block_length": 128,
        "cache": "none",
        "refresh_interval": 25,
        "confidence_threshold": 0.0,
        "confidence_factor": 0.0,
    }
