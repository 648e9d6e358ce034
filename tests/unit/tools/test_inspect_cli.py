# SPDX-License-Identifier: Apache-2.0
"""``vllm-lladav inspect`` before any model is loaded."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from vllm_lladav.tools import command


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (8, 8)).save(path)
    return path


def complaint(capsys, photo: Path, *flags: str) -> str:
    """What is said about wrong arguments."""
    exit_code = command.main(
        ["inspect", "--image", str(photo), "--prompt", "What?", *flags]
    )
    assert exit_code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    prefix = "vllm-lladav inspect: error: "
    assert captured.err.startswith(prefix)
    return captured.err.removeprefix(prefix)


@pytest.mark.parametrize("arguments", [["--help"], ["inspect", "--help"]])
def test_help_needs_neither_vllm_nor_torch(arguments):
    code = (
        "import sys; from vllm_lladav.tools.command import main\n"
        f"try: main({arguments})\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'vllm', 'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "inspect" in done.stdout


def test_missing_file(capsys, tmp_path):
    assert "No such file" in complaint(capsys, tmp_path / "none.png")


def test_unreadable_image(capsys, tmp_path):
    path = tmp_path / "text.png"
    path.write_text("no image")
    assert f"{path} is no image that Pillow can read" in complaint(capsys, path)


def test_broken_image(capsys, photo):
    Image.effect_noise((64, 64), 50).save(photo)
    photo.write_bytes(photo.read_bytes()[:-1000])
    assert f"{photo} cannot be read: " in complaint(capsys, photo)


def test_directory_as_image(capsys, tmp_path):
    assert "directory" in complaint(capsys, tmp_path)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--prune-rate", "1.5"], "prune_rate must be at least 0 (off) and below 1"),
        (["--prune-rate", "nan"], "prune_rate must be a finite number"),
        (["--prune-layer", "0"], "prune_layer must be an integer of at least 1"),
        (["--prune-stages", "1:2"], "'1:2' is not step:layer:rate"),
        (["--prune-tau", "0"], "prune_tau must be above 0"),
    ],
)
def test_bad_values_are_refused_as_the_server_refuses_them(
    capsys, photo, flags, message
):
    assert message in complaint(capsys, photo, *flags)


def test_output_is_checked_first(capsys, photo, tmp_path):
    output = tmp_path / "none" / "kept.png"
    assert "is no directory" in complaint(capsys, photo, "-o", str(output))
    output = tmp_path / "kept.txt"
    assert "no ending of an image format" in complaint(capsys, photo, "-o", str(output))


@pytest.mark.parametrize(
    "arguments", [[], ["inspect"], ["inspect", "--prompt", "What?"], ["nonsense"]]
)
def test_missing_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        command.main(arguments)
    assert end.value.code == 2
