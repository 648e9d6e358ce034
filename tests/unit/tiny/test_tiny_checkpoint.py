# SPDX-License-Identifier: Apache-2.0
"""The random checkpoints are the same bytes everywhere.

The digests were taken from the generator that wrote the checkpoint for the recorded
results of the official code, not from the code under test.
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from vllm_lladav.tiny import CONTENT_VERSION, ensure_checkpoint
from vllm_lladav.tiny import checkpoint as tiny
from vllm_lladav.tiny.__main__ import main

TINY = {
    "config.json": ("0d171c7f91d0d2d9626aa2fb7b469ea8c634622fe004414ccf304c10877d6057"),
    "generation_config.json": (
        "fcc56b563c0e13a1f4d447b9eb919b4ba3aabebaa13e9afc6109d60c1ce06ad9"
    ),
    "model-00001-of-00002.safetensors": (
        "8f94569ac70f7b7cf3dfc660637b40e001a95c3a7d4444c7f5dab0cf22b3f654"
    ),
    "model-00002-of-00002.safetensors": (
        "9c956fb7d85584363bff8dec15cf5c5677fb2790f5c953812364a287b21aaa3d"
    ),
    "model.safetensors.index.json": (
        "24f1f81d2840860f0650cd63396ba7de31b1de315e26ff6e3461c61d2adc5db6"
    ),
    "siglip-tiny-patch14-384/config.json": (
        "20f3ce63ad1fad8aeca503bb7d4d207e5f98354695cf9640731045721eb91034"
    ),
    "siglip-tiny-patch14-384/model.safetensors": (
        "9a28bb2d5b81b5fb0f1f9feb87ccc0a45cd7b340abab1b45894fe47b4d7d0cc1"
    ),
    "special_tokens_map.json": (
        "53483bb70366751b7db6b70ba9db33c95b91a03747ab01220dce119aa2317b6c"
    ),
    "tokenizer.json": (
        "7d79b45b08b5e48c96006c2e8183852276b266ec4a4007429761ed9052f20709"
    ),
    "tokenizer_config.json": (
        "e64b5547eec506715d632f10c7f2eafd492a84b61a71cc967467ab8bf571becb"
    ),
}

PREDICTS_MASK = TINY | {
    "model-00002-of-00002.safetensors": (
        "4f4c30d8fe870a00c3fa9c44e7b525e90ebf43a7f7ed57feb77f0bd7295bbc9d"
    ),
}

MID = TINY | {
    "config.json": ("c5533d5f9bb7f7d1a4c808fdf854defd31ad389a01c4687f3c9b0173612c8fab"),
    "model-00001-of-00002.safetensors": (
        "1ff92689116303575444d276e2b3e624d3234accc32c2652444b9a3c2c502876"
    ),
    "model-00002-of-00002.safetensors": (
        "75047d43adf7bf7de20f9a9669886b24c48ece4e682c2bfd440a6ee2fa5b9f36"
    ),
    "model.safetensors.index.json": (
        "879800d5d612c10171e13644223e8a04d98a402fdf6950d71c5209f71727f1e3"
    ),
}


def test_tiny(tiny_checkpoint: Path) -> None:
    assert tiny.file_digests(tiny_checkpoint) == TINY


def test_head_gain(predicts_mask_checkpoint: Path) -> None:
    assert tiny.file_digests(predicts_mask_checkpoint) == PREDICTS_MASK


@pytest.mark.slow
def test_mid(tmp_path: Path) -> None:
    tiny.write_checkpoint(tmp_path, "mid")
    assert tiny.file_digests(tmp_path) == MID


def test_float32_checkpoint_holds_the_same_numbers(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Also in files that are split otherwise."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    tiny.write_checkpoint(tmp_path, dtype="f32", shards=1)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["torch_dtype"] == "float32"
    single = load_file(tmp_path / "model-00001-of-00001.safetensors")
    index = json.loads((tiny_checkpoint / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == single.keys()
    for file_name in set(index["weight_map"].values()):
        for name, tensor in load_file(tiny_checkpoint / file_name).items():
            assert tensor.dtype == torch.bfloat16
            assert torch.equal(tensor.float(), single[name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "huge"}, "preset='huge', expected one of"),
        ({"dtype": "fp8"}, "dtype='fp8', expected one of"),
        ({"shards": 0}, "shards=0, expected at least 1"),
        ({"head_gains": {126464: 2.0}}, "expected 0 to 126463"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.write_checkpoint(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_content_version_names_the_content() -> None:
    assert tiny.content_digest(TINY).startswith(CONTENT_VERSION)
    assert len(CONTENT_VERSION) == 12


class TestEnsureCheckpoint:
    @pytest.fixture(autouse=True)
    def small_checkpoint(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Write one file instead of 67 MB, and count how often."""
        self.written: list[Path] = []

        def write_checkpoint(directory: Path, preset: str) -> None:
            self.written.append(directory)
            directory.mkdir()
            (directory / "config.json").write_text(preset)

        monkeypatch.setattr(tiny, "write_checkpoint", write_checkpoint)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        self.parent = tmp_path / "cache" / "vllm-lladav"

    def test_writes_once(self) -> None:
        path = ensure_checkpoint()
        assert path == ensure_checkpoint()
        assert path == self.parent / f"lladav-random-{CONTENT_VERSION}"
        assert os.listdir(path) == ["config.json"]
        assert list(self.parent.iterdir()) == [path]
        assert len(self.written) == 1

    @pytest.mark.parametrize(
        "preset, name", [("tiny", "lladav-random"), ("mid", "lladav-mid")]
    )
    def test_each_preset_has_a_directory(self, preset: str, name: str) -> None:
        path = ensure_checkpoint(preset)
        assert path == self.parent / f"{name}-{CONTENT_VERSION}"
        assert (path / "config.json").read_text() == preset

    def test_default_place_is_below_the_home_directory(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert ensure_checkpoint().parent == tmp_path / ".cache" / "vllm-lladav"

    def test_interrupted_writer_leaves_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(directory: Path, preset: str) -> None:
            directory.mkdir()
            raise KeyboardInterrupt

        monkeypatch.setattr(tiny, "write_checkpoint", fail)
        with pytest.raises(KeyboardInterrupt):
            ensure_checkpoint()
        assert list(self.parent.iterdir()) == []

    def test_concurrent_callers_agree(self) -> None:
        with ThreadPoolExecutor(8) as pool:
            paths = set(pool.map(lambda _: ensure_checkpoint(), range(8)))
        assert len(paths) == 1
        assert list(self.parent.iterdir()) == list(paths)


def test_command_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []
    monkeypatch.setattr(
        "vllm_lladav.tiny.__main__.write_checkpoint",
        lambda *args, **kwargs: calls.append((args, kwargs)),
    )
    command = ["tiny", str(tmp_path), "--preset", "mid", "--gain", "5:2.5"]
    monkeypatch.setattr(sys, "argv", command)
    (tmp_path / "file").write_bytes(b"")
    main()
    ((args, kwargs),) = calls
    assert args == (tmp_path, "mid")
    assert kwargs["head_gains"] == {5: 2.5}
    assert capsys.readouterr().out.endswith(" file\n")
