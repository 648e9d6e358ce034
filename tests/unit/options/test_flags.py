# SPDX-License-Identifier: Apache-2.0
"""Options as flags of ``vllm serve``."""

from argparse import ArgumentParser, Namespace

import pytest

from vllm_lladav.options.flags import add_server_flags, merge_flags, refuse_flags
from vllm_lladav.options.options import SERVER_OPTIONS


def parse(*flags: str) -> Namespace:
    parser = ArgumentParser()
    add_server_flags(parser)
    return parser.parse_args(flags)


def test_every_option_has_a_flag():
    args = parse(
        *("--plugin", "pruning", "--gen-length", "64", "--block-length", "32"),
        *("--tokens-per-step", "2", "--remasking", "random"),
        *("--max-gen-length", "256", "--prune-rate", "0.6", "--prune-layer", "3"),
        *("--prune-policy", "adaptive", "--prune-queries", "answer"),
        *("--prune-positions", "compact", "--prune-min-visual-tokens", "99"),
        *("--prune-tau", "0.9"),
    )
    merged = merge_flags(args, None)
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
    merged = merge_flags(args, None)
    assert merged["lladav"]["prune_stages"] == "1:2:0.5,9:2:0.5"


def test_flags_not_given_change_nothing():
    """So that additional_config can set them, and other models never see them."""
    assert merge_flags(parse(), None) == {}
    other = {"other": {"a": 1}}
    assert merge_flags(parse(), other) == other
    assert merge_flags(Namespace(), {}) == {}


def test_flags_win_over_additional_config_and_leave_it_alone():
    additional = {"other": 1, "lladav": {"gen_length": 16, "block_length": 8}}
    merged = merge_flags(parse("--gen-length", "32"), additional)
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
        merge_flags(parse(*flags), additional)


@pytest.mark.parametrize(
    "flags", [("--plugin", "prune"), ("--remasking", "best"), ("--gen-length", "x")]
)
def test_parser_refuses_bad_flags(flags, capsys):
    with pytest.raises(SystemExit):
        parse(*flags)
    assert flags[0] in capsys.readouterr().err


def test_refuse_names_what_was_asked_for():
    refuse_flags({"--a": None, "--b": False})
    with pytest.raises(ValueError, match="--a, --c") as error:
        refuse_flags({"--a": True, "--b": False, "--c": 1})
    assert "--b" not in str(error.value)


def test_help_names_every_default(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    # Lines break anywhere, at hyphens too.
    text = "".join(capsys.readouterr().out.split())
    for option in SERVER_OPTIONS.values():
        described = f"{option.help} (default: {option.default_text})"
        assert option.flag in text
        assert "".join(described.split()) in text
