# SPDX-License-Identifier: Apache-2.0
"""What a server says is in force."""

import logging
from pathlib import Path
from typing import Any

import pytest
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs

from vllm_lladav.frontend.metrics import DenoisingStatLogger
from vllm_lladav.frontend.start_log import start_lines


def started(model: str | Path = "lladav-tiny", **options: Any) -> VllmConfig:
    """The configuration of an engine that has started."""
    values = {"dtype": "float32", "max_num_seqs": 16, **options}
    config = EngineArgs(model=str(model), **values).create_engine_config()
    # KV blocks of 128 tokens, and vLLM's null block.
    config.cache_config.num_gpu_blocks = 35
    return config


def with_options(**options: Any) -> list[str]:
    additional_config = {"lladav": options}
    return list(start_lines(started(additional_config=additional_config)))


def test_defaults_are_exact():
    mode, lengths, requests = with_options()
    assert mode == "in force: exact denoising, all defaults"
    assert lengths.startswith("lengths: canvas of 128 tokens unless a request asks")
    assert "at most 1024 (--max-gen-length)" in lengths
    assert "less than 2048 (--max-model-len)" in lengths
    # 34 blocks; 64 + 128 tokens are two, with the largest image (192) three.
    assert "at once: 11 requests with the largest image (192 visual" in requests
    assert ", 16 without, " in requests


def test_pruning_shows_what_it_does_and_nothing_idle():
    mode, *_ = with_options(plugin="pruning")
    assert mode == (
        "in force: --plugin pruning --prune-rate 0.5 --prune-layer 4 --prune-policy "
        "fastv --prune-queries all --prune-positions "
        "original --prune-min-visual-tokens 0"
    )
    mode, *_ = with_options(plugin="pruning", prune_rate=0)
    assert mode == "in force: --plugin pruning --prune-rate 0.0"


def test_presets_show_what_they_set():
    mode, *_ = with_options(denoising="fast", gen_length=64)
    assert mode == (
        "in force: --denoising fast --gen-length 64 --block-length 32 --cache dual "
        "--confidence-threshold 0.9"
    )


def test_guided_requests_hold_twice_as_much():
    *_, requests = with_options(cfg_scale=1, gen_length=64)
    # 128 tokens are a block, guidance makes two of it; 16 sequences are 8 requests.
    assert ", 8 without, " in requests


def test_every_server_says_it_once(caplog: pytest.LogCaptureFixture):
    config = started(data_parallel_size=2)
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="vllm"):
        for engine in range(2):
            DenoisingStatLogger(config, engine).log_engine_initialized()
        config.parallel_config._api_process_rank = 1
        DenoisingStatLogger(config, 0).log_engine_initialized()
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split()[1] for line in lines] == ["in", "lengths:", "at"]
    # Of 17 blocks in each of the two engines, one is vLLM's.
    assert "at once: 10 requests" in lines[-1]
