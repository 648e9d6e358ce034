# SPDX-License-Identifier: Apache-2.0
"""The wheel, installed beside vLLM: nothing comes from the checkout."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PLUGIN = """
import json
from importlib.metadata import entry_points

from vllm import ModelRegistry
from vllm.engine.arg_utils import EngineArgs
from vllm.plugins import load_general_plugins

load_general_plugins()
groups = "vllm.general_plugins", "vllm.stat_logger_plugins"
points = [point for group in groups for point in entry_points(group=group)]
ours = [point for point in points if point.name == "lladav"]
config = EngineArgs(model="lladav-tiny", kv_cache_memory_bytes=1 << 28)
model = config.create_engine_config().model_config

import vllm_lladav.patches.cpu_kernels

print(json.dumps({
    "entry_points": [point.value for point in ours],
    "loaded": [point.load().__module__ for point in ours],
    "file": vllm_lladav.__file__,
    "patch": vllm_lladav.patches.cpu_kernels.__file__,
    "is_supported": model.architecture in ModelRegistry.get_supported_archs(),
    "model": model.model,
    "served": model.served_model_name,
}))
"""


class Installed:
    """A virtual environment with the wheel, and with all that this one holds but the
    project itself."""

    def __init__(self, root: Path, wheel: Path) -> None:
        self.root = root
        self.bin = root / "bin"
        venv.create(root)
        places = {"base": str(root), "platbase": str(root)}
        site = Path(sysconfig.get_path("purelib", "venv", places))
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            if "lladav" not in entry.name:
                (site / entry.name).symlink_to(entry)
        self.pip("install", "--quiet", "--no-index", "--no-deps", str(wheel))

    def pip(self, *arguments: str) -> None:
        target = ["--python", str(self.bin / "python")]
        subprocess.run([sys.executable, "-m", "pip", *target, *arguments], check=True)

    def run(self, command: str, *arguments: str) -> str:
        """What a command of the environment prints, far from the checkout."""
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        return subprocess.run(
            [str(self.bin / command), *arguments],
            cwd=self.root,
            env=environment,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            timeout=180,
        ).stdout


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed") / "venv", wheel)


def test_requirements_are_met(installed: Installed) -> None:
    installed.pip("check")


def test_command(installed: Installed) -> None:
    assert installed.run("vllm-lladav", "--version") == "0.1.0\n"
    text = installed.run("vllm-lladav", "--help")
    assert all(name in text for name in ("inspect", "eval", "capacity"))


def test_vllm_finds_the_plugin_and_the_checkpoint(installed: Installed) -> None:
    """By its entry points, in the environment; the alias is a model that it knows."""
    found = json.loads(installed.run("python", "-c", PLUGIN).splitlines()[-1])
    assert found["entry_points"] == [
        "vllm_lladav.plugin:register",
        "vllm_lladav.frontend.metrics:DenoisingStatLogger",
    ]
    assert found["loaded"] == ["vllm_lladav.plugin", "vllm_lladav.frontend.metrics"]
    for name in ("file", "patch", "model"):
        assert Path(found[name]).is_relative_to(installed.root), found[name]
    assert found["is_supported"]
    assert found["served"] == "lladav-tiny"
    assert Path(found["model"], "model.safetensors").is_file()


def test_flags_are_those_of_the_plugin(installed: Installed) -> None:
    vllm = ("-m", "vllm.entrypoints.cli.main")
    text = installed.run("python", *vllm, "serve", "--help=LLaDA-V")
    assert "--gen-length" in text and "--prune-rate" in text
