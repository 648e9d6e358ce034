# SPDX-License-Identifier: Apache-2.0
"""The record of where figures were measured, for files of results."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("vllm-lladav", "vllm", "torch", "transformers")


def environment() -> dict[str, Any]:
    """Machine, versions, and commit of this package.

    ``commit`` ends with ``-dirty`` if tracked files had uncommitted changes; it is None
    outside of a git checkout. All values can be written as JSON.
    """
    found: dict[str, Any] = {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "cpus_allowed": len(os.sched_getaffinity(0)),
        "cpu": _cpu_name(),
        "gpus": _gpu_names(),
        "python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return {**found, "commit": _commit()}


def _cpu_name() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return names[0] if names else None


def _gpu_names() -> list[str]:
    import torch

    return [
        torch.cuda.get_device_name(number)
        for number in range(torch.cuda.device_count())
    ]


def _commit() -> str | None:
    """Hash of the checkout's commit, with ``-dirty`` if tracked files were changed."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
