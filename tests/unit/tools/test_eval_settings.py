# SPDX-License-Identifier: Apache-2.0
"""Sweeps: which settings run, each meaning once, and what is refused."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_lladav.options.kinds import OptionError
from vllm_lladav.tools.eval.cost import resolved
from vllm_lladav.tools.eval.settings import (
    AXES,
    all_combinations,
    parse_axis,
    parse_setting,
    plan_sweep,
)

LENGTHS = {"gen_length": 32, "block_length": 8}
NUM_LAYERS = 4


def sweep(**axes):
    return plan_sweep(LENGTHS, all_combinations(axes))


def labels(settings):
    return [setting.label for setting in settings]


def test_exact_alone():
    (exact,) = plan_sweep(LENGTHS, all_combinations({}))
    assert exact.label == "exact"
    assert exact.xargs == {
        "gen_length": 32,
        "block_length": 8,
        "steps": 32,
        "remasking": "low_confidence",
        "cache": "none",
        "confidence_threshold": 0.0,
        "confidence_factor": 0.0,
        "cfg_scale": 0.0,
        "prune_rate": 0.0,
    }


def test_product_without_repetitions():
    """Where nothing is pruned, the other parameters of pruning mean nothing; nor does
    the interval of a cache that is off, nor the queries of a blind policy."""
    settings = sweep(
        prune_rate=(0.0, 0.5),
        prune_layer=(2, 3),
        prune_policy=("fastv", "random"),
        prune_queries=("all", "answer"),
        cache=("none", "dual"),
        refresh_interval=(8, 25),
    )
    prunings = ["fastv 0.5@{}", "fastv 0.5@{} answer", "random 0.5@{}"]
    prunings = [text.format(layer) for layer in (2, 3) for text in prunings]
    expected = ["exact", "dual + refreshed every 8", "dual"]
    caches = ("", " + dual + refreshed every 8", " + dual")
    expected += [text + cache for text in prunings for cache in caches]
    assert labels(settings) == expected


def test_exact_is_first_wherever_it_stands():
    settings = sweep(prune_rate=(0.75, 0.0), cache=("dual", "none"))
    assert labels(settings) == [
        "exact",
        "fastv 0.75 + dual",
        "fastv 0.75",
        "dual",
    ]


def test_labels():
    values = {
        "confidence_threshold": 0.9,
        "confidence_factor": 2.0,
        "cfg_scale": 1.5,
        "steps": 16,
        "block_length": 16,
        "prune_policy": "adaptive",
        "prune_rate": 0.5,
        "prune_positions": "compact",
        "prune_min_visual_tokens": 9,
    }
    _, setting = plan_sweep(LENGTHS, [values])
    assert setting.label == (
        "adaptive 0.5 compact from 9 tokens tau 0.95 + blocks of 16 + 16 steps "
        "+ c>=0.9 + factor 2 + cfg 1.5"
    )
    _, random = plan_sweep(LENGTHS, [{"remasking": "random"}])
    assert random.label == "random remasking"
    assert "confidence_threshold" not in random.xargs


def test_settings_with_names():
    explicit = [
        parse_setting("fast: prune_rate=0.75,prune_layer=4 , cache=dual"),
        parse_setting("prune_stages=1:2:0.3,3:2:0.5,cache=prompt"),
    ]
    assert explicit[0][0] == "fast"
    assert explicit[1] == (None, {"prune_stages": "1:2:0.3,3:2:0.5", "cache": "prompt"})
    combinations = all_combinations({"cache": ("dual",)})
    settings = plan_sweep(LENGTHS, combinations, explicit)
    assert labels(settings) == [
        "exact",
        "dual",
        "fast",
        "fastv 1:2:0.3,3:2:0.5 + prompt",
    ]
    assert "prune_rate" not in settings[-1].xargs
    # A name for what runs anyway.
    settings = plan_sweep(LENGTHS, combinations, [("mine", {"cache": "dual"})])
    assert labels(settings) == ["exact", "mine"]


def test_two_meanings_of_a_name():
    explicit = [("a", {"cache": "dual"}), ("a", {"cache": "prompt"})]
    with pytest.raises(ValueError, match="two settings are called 'a'"):
        plan_sweep(LENGTHS, [], explicit)


@pytest.mark.parametrize(
    "text, message",
    [
        ("cache", "'cache' is not name=value"),
        ("a: cache", "'cache' is not name=value"),
        ("colour=red", "unknown parameter colour; known are block_length"),
        ("gen_length=8", "unknown parameter gen_length"),
        ("cache=dual,cache=none", "cache stands twice"),
        ("steps=many", "steps must be an integer: 'many'"),
        ("prune_rate=", "prune_rate has an empty value"),
    ],
)
def test_settings_that_cannot_be_read(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_setting(text)


def test_axes():
    assert parse_axis("prune_rate", "0, .5,0.75") == (0.0, 0.5, 0.75)
    assert parse_axis("prune_layer", "2,4") == (2, 4)
    assert parse_axis("cache", "none, dual") == ("none", "dual")
    with pytest.raises(ValueError, match="prune_layer must be an integer: '2.5'"):
        parse_axis("prune_layer", "2.5")
    with pytest.raises(ValueError, match="cache has an empty value"):
        parse_axis("cache", "none,")


@pytest.mark.parametrize(
    "values, message",
    [
        ({"prune_rate": 1.0}, "prune_rate must be at least 0 (off) and below 1"),
        ({"prune_rate": float("nan")}, "prune_rate must be a finite number"),
        (
            {"cache": "all"},
            "cache must be one of none, prompt, prefix, dual; got 'all'",
        ),
        ({"prune_rate": 0.5, "prune_policy": "best"}, "prune_policy must be one of"),
        ({"prune_stages": "1:2"}, "'1:2' is not step:layer:rate"),
        ({"cfg_scale": -1.0}, "cfg_scale must be at least 0 (off)"),
    ],
)
def test_bad_values_are_refused_as_the_server_refuses_them(values, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        plan_sweep(LENGTHS, [values])


@pytest.mark.parametrize(
    "values, message",
    [
        ({"steps": 30}, "steps must be a multiple of the number of blocks"),
        ({"block_length": 7}, "block_length must be a divisor of gen_length"),
        ({"prune_rate": 0.5, "prune_layer": 5}, "prune_layer must be at most 4"),
        ({"cfg_scale": 1.0}, "guidance needs 2"),
    ],
)
def test_what_needs_the_model_is_refused_as_a_request(values, message):
    _, setting = plan_sweep(LENGTHS, [values])
    with pytest.raises(OptionError, match=message):
        resolved(setting, NUM_LAYERS, max_num_seqs=1)


VALUES = {
    "prune_rate": st.sampled_from([0.0, 0.5]),
    "prune_layer": st.sampled_from([1, 2]),
    "prune_policy": st.sampled_from(["fastv", "random", "adaptive", "aggregated"]),
    "prune_queries": st.sampled_from(["all", "answer"]),
    "prune_positions": st.sampled_from(["original", "compact"]),
    "prune_min_visual_tokens": st.sampled_from([0, 9]),
    "prune_tau": st.sampled_from([0.9, 0.95]),
    "cache": st.sampled_from(["none", "dual"]),
    "refresh_interval": st.sampled_from([4, 25]),
    "confidence_threshold": st.sampled_from([0.0, 0.5]),
    "confidence_factor": st.sampled_from([0.0, 2.0]),
    "cfg_scale": st.sampled_from([0.0, 1.0]),
    "steps": st.sampled_from([16, 32]),
}
# Random remasking rules confidence decoding out.
assert VALUES.keys() == AXES.keys() - {"remasking"}


@given(st.fixed_dictionaries({}, optional=VALUES), st.fixed_dictionaries(VALUES))
def test_one_setting_per_meaning(some, others):
    """Settings are two where the engine would run two different things, and one where
    it would not."""
    settings = plan_sweep(LENGTHS, [some, others])
    meanings = set()
    for setting in settings:
        params = resolved(setting, NUM_LAYERS)
        values = params.to_values()
        if params.cache == "none":
            del values["refresh_interval"]
        if params.pruning is not None:
            if params.pruning.policy == "random":
                del values["pruning"]["queries"]
            if params.pruning.policy != "adaptive":
                del values["pruning"]["tau"]
        # Half of four layers is what a setting without a layer gets.
        meanings.add((repr(values), "prune_layer" in setting.xargs))
    assert len(meanings) == len(settings)
    assert len({setting.label for setting in settings}) == len(settings)
