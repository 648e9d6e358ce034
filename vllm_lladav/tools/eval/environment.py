# SPDX-License-Identifier: Apache-2.0
"""The record of where figures were measured, for files of results."""

import os
import platform
import re
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
    import torch

    gpus = range(torch.cuda.device_count())
    return {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "cpus_allowed": len(os.sched_getaffinity(0)),
        "cpu": _cpu_name(),
        "gpus": [torch.cuda.get_device_name(number) for number in gpus],
        "python": platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str | None:
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        return None
    return found and found[1].strip()


def _commit() -> str | None:
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
