# SPDX-License-Identifier: Apache-2.0
"""Write down the versions that ``make setup`` installs.

    .venv/bin/python tools/lock_versions.py      # make lock

``locked/cpu.txt`` lists what this environment holds, a CPU's, with which the tests have
run. ``locked/cuda.txt`` is what uv finds for vLLM's CUDA build: the same versions where
it allows them. Both are constraints, names and versions only, for any index.
"""

import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from setup_env import LOCKED, ROOT, SUPPORTED_PYTHON, VLLM_VERSION

OWN = {"pip", "vllm-lladav"}
"""What is not ours to name: the tool that installs, and this project."""


def main() -> None:
    installed = metadata.version("vllm")
    if installed != f"{VLLM_VERSION}+cpu":
        sys.exit(f"error: an environment with vLLM {VLLM_VERSION}+cpu is needed.")
    cpu = environment()
    cuda = _resolved(cpu)
    _write(
        "cpu", f"The tests ran with these, on Python {_dotted(sys.version_info)}.", cpu
    )
    _write("cuda", "Resolved, not run.", cuda)


def environment() -> list[str]:
    """Every distribution of this environment, without marks of its build."""
    versions = {
        re.sub(r"[-_.]+", "-", found.name).lower(): found.version.partition("+")[0]
        for found in metadata.distributions()
    }
    return [f"{name}=={versions[name]}" for name in sorted(versions.keys() - OWN)]


def _resolved(preferred: list[str]) -> list[str]:
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header"]
    command += ["--no-annotate", "--only-binary", ":all:", "--extra", "dev"]
    command += ["--python-platform", "x86_64-manylinux_2_31"]
    # What has wheels for the newest Python has them for older ones, not always the
    # other way round.
    command += ["--python-version", _dotted(SUPPORTED_PYTHON[1])]
    pinned, output = ROOT / "build/vllm.txt", ROOT / "build/cuda.txt"
    output.parent.mkdir(exist_ok=True)
    pinned.write_text(f"vllm=={VLLM_VERSION}\n")
    # What stands in its output file is what uv prefers.
    output.write_text("\n".join(preferred))
    command += ["--constraint", str(pinned), "--output-file", str(output)]
    subprocess.run([*command, "pyproject.toml"], cwd=ROOT, check=True)
    return output.read_text().splitlines()


def _dotted(version: Sequence[Any]) -> str:
    return ".".join(map(str, version[:2]))


def _write(device: str, origin: str, lines: list[str]) -> None:
    header = f"# What `make setup` installs; `make lock` writes this. {origin}"
    path = LOCKED / f"{device}.txt"
    path.write_text("\n".join([header, *lines, ""]), encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {len(lines)} versions")


if __name__ == "__main__":
    main()
