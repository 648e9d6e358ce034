# SPDX-License-Identifier: Apache-2.0
"""Fixtures of all tests. Nothing here imports vLLM."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# vLLM and the Hugging Face libraries read these when they are first imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

from tests.golden.cases import GoldenCase, load_cases
from tests.server.process import ServerProcess, running_server
from vllm_lladav.tiny.checkpoint import write_checkpoint


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint that the golden cases were recorded on."""
    directory = tmp_path_factory.mktemp("checkpoint") / "lladav-random"
    write_checkpoint(directory)
    return directory


@pytest.fixture(scope="session")
def predicts_mask_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, golden_cases: dict[str, GoldenCase]
) -> Path:
    """The checkpoint of the case whose model predicts the mask token itself."""
    directory = tmp_path_factory.mktemp("checkpoint") / "lladav-predicts-mask"
    head_gains = golden_cases["text_predicts_mask"].head_gains
    write_checkpoint(directory, head_gains=head_gains)
    return directory


@pytest.fixture(scope="session")
def server(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """``vllm serve --model lladav --plugin pruning --live-canvas on``, shared by all
    tests."""
    log = tmp_path_factory.mktemp("server") / "server.log"
    with running_server(tiny_checkpoint, log, "--live-canvas", "on") as server:
        yield server


@pytest.fixture(scope="session")
def golden_cases() -> dict[str, GoldenCase]:
    """Recorded results of the official code, by case name."""
    return load_cases()
