# SPDX-License-Identifier: Apache-2.0
"""Caches, confidence, presets and guidance of a request."""

import math
from dataclasses import replace
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

from tests.unit.resolving import END, ROOMY, Letters, resolved
from vllm_lladav.denoising.params import denoising_params
from vllm_lladav.frontend.request import resolve
from vllm_lladav.options.options import ServerOptions
from vllm_lladav.options.reading import read_server


def test_exact_by_default():
    params, _ = resolved()
    assert (params.cache, params.is_confident) == ("none", False)


def test_cache_and_confidence():
    server = ServerOptions(cache="prompt", refresh_interval=7, confidence_factor=1.5)
    params, _ = resolved({"confidence_threshold": 0.9}, server=server)
    assert (params.cache, params.refresh_interval) == ("prompt", 7)
    assert (params.confidence_threshold, params.confidence_factor) == (0.9, 1.5)
    params, _ = resolved({"confidence_factor": 0, "cache": "none"}, server=server)
    assert (params.cache, params.is_confident) == ("none", False)
    # Confidence means nothing where positions are ranked at random.
    params, _ = resolved({"remasking": "random"}, server=server)
    assert not params.is_confident


def test_presets():
    """A preset in a request takes the place of the server's options; what else the
    request says goes before."""
    fast = read_server({"denoising": "fast"})
    params, _ = resolved(server=fast)
    assert (params.cache, params.confidence_threshold) == ("dual", 0.9)
    assert params.block_length == 32
    params, _ = resolved({"denoising": "exact"}, server=fast)
    assert (params.cache, params.is_confident) == ("none", False)
    assert params.block_length == 128
    params, _ = resolved({"denoising": "fast", "cache": "prefix"})
    assert (params.cache, params.confidence_threshold) == ("prefix", 0.9)


def test_guidance():
    params, _ = resolved(server=ServerOptions(cfg_scale=0.5))
    assert (params.cfg_scale, params.num_sequences) == (0.5, 2)
    params, _ = resolved({"cfg_scale": 0}, server=ServerOptions(cfg_scale=0.5))
    assert params.num_sequences == 1


def test_guidance_takes_two_sequences():
    """Both begin with a KV block, so the first one's last block is counted whole."""
    extra = {"cfg_scale": 1, "gen_length": 32}
    largest = {"prompt_len": 100}
    limits = replace(ROOMY, kv_block_size=16, max_model_len=144 + 132 + 1)
    assert resolved(extra, limits=limits, **largest)[0].cfg_scale == 1
    limits = replace(limits, max_model_len=144 + 132)
    with pytest.raises(VLLMValidationError, match="= 276 tokens") as error:
        resolved(extra, limits=limits, **largest)
    assert "twice (cfg_scale)" in str(error.value)
    limits = replace(ROOMY, max_num_seqs=1)
    with pytest.raises(VLLMValidationError, match="--max-num-seqs 1") as error:
        resolved(extra, limits=limits, **largest)
    assert error.value.parameter == "cfg_scale"


def test_masks_in_the_prompt_rule_a_cache_out():
    """They are predicted in every step, like those of the canvas."""
    params = SamplingParams(max_tokens=8, extra_args={"cache": "prompt"})
    resolve(params, 9, ServerOptions(), ROOMY, Letters(), END, has_prompt_masks=True)
    assert denoising_params(params).cache == "none"


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"cache": "all"}, ["cache", "none, prompt", "'all'"]),
        ({"refresh_interval": 0}, ["refresh_interval", "at least 1", "0"]),
        ({"confidence_threshold": 1.5}, ["confidence_threshold", "to 1", "1.5"]),
        ({"confidence_threshold": math.nan}, ["confidence_threshold", "finite"]),
        ({"denoising": "slow"}, ["denoising", "exact, fast", "'slow'"]),
        ({"cfg_scale": -0.1}, ["cfg_scale", "at least 0", "-0.1"]),
        ({"cfg_scale": math.inf}, ["cfg_scale", "finite"]),
        ({"confidence_factor": -1}, ["confidence_factor", "at least 0", "-1"]),
        (
            {"confidence_factor": 1, "remasking": "random"},
            ["confidence_factor", "random remasking"],
        ),
    ],
)
def test_bad_modes_are_refused(extra: dict[str, Any], words: list[str]):
    with pytest.raises(VLLMValidationError) as error:
        resolved(extra)
    assert error.value.parameter == words[0]
    for word in words:
        assert word in str(error.value)
