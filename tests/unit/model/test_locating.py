# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are not there: what the user is told, and how soon."""

import json
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from vllm_lladav.model.locating import check_exists, locate
from vllm_lladav.model.start_error import StartError

HUB_NAME = "GSAI-ML/LLaDA-V"
CONFIG = {"architectures": ["LlavaLLaDAModelLM"]}


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of a hub that cannot be reached."""
    cache = tmp_path / "hub"
    monkeypatch.delenv("VLLM_LLADAV_MODEL", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


def refusal(model: str) -> str:
    with pytest.raises(StartError) as error:
        locate(model)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_hub_that_may_not_be_asked():
    message = refusal("lladav")
    assert message.startswith(f"lladav stands for {HUB_NAME}: ")
    assert "HF_HUB_OFFLINE is set" in message
    assert message.endswith("or set VLLM_LLADAV_MODEL to one")


def test_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch):
    """Within seconds: the hub's own client tries for half a minute."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # No server listens there.
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    template = nowhere + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    started = time.monotonic()
    message = refusal("lladav")
    assert time.monotonic() - started < 5
    assert "cannot be reached (ConnectError: " in message
    assert message.endswith("or set VLLM_LLADAV_MODEL to one")


def test_cache_of_the_hub_is_enough(hub: Path):
    repository = hub / "models--GSAI-ML--LLaDA-V"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    (snapshot / "config.json").write_text(json.dumps(CONFIG))
    assert locate("lladav") == HUB_NAME


@pytest.mark.parametrize("name", ["/no/such/directory", "no/such/directory", "no/such"])
def test_variable_that_names_nothing(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv("VLLM_LLADAV_MODEL", name)
    message = refusal("lladav")
    assert message.startswith(f"lladav stands for {name}: there is no such directory")
    assert message.endswith("or set VLLM_LLADAV_MODEL to one")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no config.json in that directory"),
        ("{", "its config.json is no JSON"),
        ("[]", "no LLaDA-V"),
        ("{}", "must have LlavaLLaDAModelLM; got None"),
        (
            '{"architectures": ["LlamaForCausalLM"]}',
            "must have LlavaLLaDAModelLM; got ['LlamaForCausalLM']",
        ),
    ],
)
def test_directory_without_our_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None, words: str
):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    monkeypatch.setenv("VLLM_LLADAV_MODEL", str(tmp_path))
    assert words in refusal("lladav")


def test_our_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.setenv("VLLM_LLADAV_MODEL", str(tmp_path))
    assert locate("lladav") == str(tmp_path)
    assert locate(str(tmp_path)) == str(tmp_path)


@pytest.mark.parametrize("name", ["/no/such/directory", "./no/such", "~/no/such"])
def test_path_to_nothing(name: str):
    message = f"{name}: there is no such file or directory"
    assert refusal(name) == message
    with pytest.raises(StartError, match=message):
        check_exists(name)


def test_directory_without_a_config(tmp_path: Path):
    assert "there is no config.json in it" in refusal(str(tmp_path))
    (tmp_path / "params.json").write_text("{}")
    assert locate(str(tmp_path)) == str(tmp_path)


@pytest.mark.parametrize("name", ["someone/other-model", "s3://bucket/model"])
def test_other_names_are_left_to_vllm(name: str):
    assert locate(name) == name
    check_exists(name)
