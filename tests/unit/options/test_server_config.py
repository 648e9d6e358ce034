# SPDX-License-Identifier: Apache-2.0
"""Server options: defaults, validation, flags, and model aliases."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_lladav.model.families import resolve_alias
from vllm_lladav.options.flags import add_arguments, merge_arguments, refuse
from vllm_lladav.options.server import ServerConfig
from vllm_lladav.tiny.checkpoint import content_digest, file_digests


def parse(*flags: str) -> Namespace:
    parser = ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(flags)


def prune(**options: Any) -> dict[str, Any]:
    return {
        "plugin": "pruning",
        **{f"prune_{name}": value for name, value in options.items()},
    }


def test_defaults_are_those_of_the_official_demo():
    config = ServerConfig()
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
        ServerConfig.from_values(values)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("values", [["gen_length"], "gen_length", 5])
def test_options_must_be_an_object(values):
    with pytest.raises(ValueError, match=r'additional_config\["lladav"\]'):
        ServerConfig.from_values(values)


def test_values_survive_the_way_between_processes():
    config = ServerConfig(plugin="pruning", gen_length=64, remasking="random")
    assert ServerConfig.from_values(config.to_values()) == config


@pytest.mark.parametrize(
    ("additional", "gen_length"),
    [({}, 128), ({"other": 1}, 128), ({"lladav": {"gen_length": 9}}, 9), (None, 128)],
)
def test_read_from_the_configuration_of_vllm(additional, gen_length):
    vllm_config: Any = SimpleNamespace(additional_config=additional)
    assert ServerConfig.of(vllm_config).gen_length == gen_length


# ----------------------------------------------------------------- flags
def test_every_option_has_a_flag():
    args = parse(
        *("--plugin", "pruning", "--gen-length", "64", "--block-length", "32"),
        *("--tokens-per-step", "2", "--remasking", "random"),
        *("--max-gen-length", "256", "--prune-rate", "0.6", "--prune-layer", "3"),
        *("--prune-policy", "adaptive", "--prune-queries", "answer"),
        *("--prune-positions", "compact", "--prune-min-visual-tokens", "99"),
        *("--prune-tau", "0.9"),
    )
    merged = merge_arguments(args, None)
    assert merged == {
        "lladav": {
            "plugin": "pruning",
            "gen_length": 64,
            "block_length": 32,
            "tokens_per_step": 2,
            "remasking": "random",
            "max_gen_length": 256,
            "prune_rate": 0.6,
            "prune_layer": 3,
            "prune_policy": "adaptive",
            "prune_queries": "answer",
            "prune_positions": "compact",
            "prune_min_visual_tokens": 99,
            "prune_tau": 0.9,
        }
    }


def test_stages_flag():
    args = parse("--plugin", "pruning", "--prune-stages", "1:2:0.5,9:2:0.5")
    merged = merge_arguments(args, None)
    assert merged["lladav"]["prune_stages"] == "1:2:0.5,9:2:0.5"


@pytest.mark.parametrize("options", [prune(layer=5), prune(stages="1:1:.5,2:5:.5")])
def test_layers_past_the_depth_are_refused(options):
    config = ServerConfig.from_values(options)
    config.check_depth(5)
    with pytest.raises(ValueError, match="after layer 5.* has 4 layers"):
        config.check_depth(4)


def test_flags_not_given_change_nothing():
    """So that additional_config can set them, and other models never see them."""
    assert merge_arguments(parse(), None) == {}
    other = {"other": {"a": 1}}
    assert merge_arguments(parse(), other) == other
    assert merge_arguments(Namespace(), {}) == {}


def test_flags_win_over_additional_config_and_leave_it_alone():
    additional = {"other": 1, "lladav": {"gen_length": 16, "block_length": 8}}
    merged = merge_arguments(parse("--gen-length", "32"), additional)
    assert merged == {"other": 1, "lladav": {"gen_length": 32, "block_length": 8}}
    assert additional["lladav"] == {"gen_length": 16, "block_length": 8}


@pytest.mark.parametrize(
    ("flags", "additional"),
    [
        (("--gen-length", "2000"), None),
        (("--tokens-per-step", "0"), None),
        (("--gen-length", "8"), {"lladav": {"nonsense": 1}}),
        ((), {"lladav": {"nonsense": 1}}),
    ],
)
def test_merged_options_are_validated(flags, additional):
    with pytest.raises(ValueError):
        merge_arguments(parse(*flags), additional)


@pytest.mark.parametrize(
    "flags", [("--plugin", "prune"), ("--remasking", "best"), ("--gen-length", "x")]
)
def test_parser_refuses_bad_flags(flags, capsys):
    with pytest.raises(SystemExit):
        parse(*flags)
    assert flags[0] in capsys.readouterr().err


def test_refuse_names_what_was_asked_for():
    refuse({"--a": None, "--b": False})
    with pytest.raises(ValueError, match="--a, --c") as error:
        refuse({"--a": True, "--b": False, "--c": 1})
    assert "--b" not in str(error.value)


# ----------------------------------------------------------------- aliases
def test_alias_is_the_official_checkpoint(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("VLLM_LLADAV_MODEL", raising=False)
    assert resolve_alias("lladav") == "GSAI-ML/LLaDA-V"


def test_alias_can_be_a_directory(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setenv("VLLM_LLADAV_MODEL", str(tmp_path))
    assert resolve_alias("lladav") == str(tmp_path)


def test_empty_variable_means_not_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VLLM_LLADAV_MODEL", "")
    assert resolve_alias("lladav") == "GSAI-ML/LLaDA-V"


def test_random_alias_writes_a_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path, tiny_checkpoint
):
    """The same bytes as the checkpoint of the goldens, whatever the other alias is."""
    monkeypatch.setenv("VLLM_LLADAV_MODEL", "elsewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    directory = Path(resolve_alias("lladav-random"))
    assert directory.is_relative_to(tmp_path)
    digests = [content_digest(file_digests(d)) for d in (directory, tiny_checkpoint)]
    assert digests[0] == digests[1]
    assert resolve_alias("lladav-random") == str(directory)


def test_a_preset_gives_way_to_options():
    fast = ServerConfig.from_values({"denoising": "fast", "refresh_interval": 3})
    assert (fast.cache, fast.refresh_interval) == ("dual", 3)
    assert fast.confidence_threshold > 0
    assert ServerConfig.from_values(fast.to_values()) == fast
    exact = ServerConfig.from_values({"cache": "prompt"})
    assert (exact.denoising, exact.cache) == ("exact", "prompt")


def test_tiny_alias_is_in_the_package():
    directory = Path(resolve_alias("lladav-tiny"))
    config = json.loads((directory / "config.json").read_text())
    assert config["architectures"] == ["LlavaLLaDAModelLM"]
    assert (directory / "model.safetensors").is_file()
