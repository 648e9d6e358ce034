# SPDX-License-Identifier: Apache-2.0
"""Short names of checkpoints."""

import json
from pathlib import Path

import pytest

from vllm_lladav.model.families import resolve_alias
from vllm_lladav.tiny.checkpoint import content_digest, file_digests


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


def test_tiny_alias_is_in_the_package():
    directory = Path(resolve_alias("lladav-tiny"))
    config = json.loads((directory / "config.json").read_text())
    assert config["architectures"] == ["LlavaLLaDAModelLM"]
    assert (directory / "model.safetensors").is_file()
