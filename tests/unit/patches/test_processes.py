# SPDX-License-Identifier: Apache-2.0
"""Which process gets which patches."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_lladav import patches

FOLDER = Path(patches.__file__).parent


def applied(monkeypatch: pytest.MonkeyPatch, process: str) -> list[str]:
    """Names of the patches that are applied in a process of that name."""
    names: list[str] = []

    def module(dotted: str) -> Any:
        return SimpleNamespace(apply=lambda: names.append(dotted.rpartition(".")[2]))

    monkeypatch.setattr(patches, "import_module", module)
    monkeypatch.setattr(
        patches, "current_process", lambda: SimpleNamespace(name=process)
    )
    patches.apply_all()
    return names


def test_every_file_is_a_patch_of_some_process():
    files = {path.stem for path in FOLDER.glob("*.py")} - {"__init__", "wrapping"}
    assert files == {*patches.EVERYWHERE, *patches.FRONT_END, *patches.WORKER}


@pytest.mark.parametrize("process", ["MainProcess", "ApiServer_0", "SpawnProcess-1"])
def test_front_end(monkeypatch: pytest.MonkeyPatch, process: str):
    names = [*patches.EVERYWHERE, *patches.FRONT_END]
    assert applied(monkeypatch, process) == names


@pytest.mark.parametrize("process", ["EngineCore", "EngineCore_DP1", "VllmWorker-0"])
def test_engine(monkeypatch: pytest.MonkeyPatch, process: str):
    assert applied(monkeypatch, process) == list(patches.EVERYWHERE)


def test_an_engine_imports_no_api_server():
    """Nor a worker: it would start two seconds later."""
    for name in patches.EVERYWHERE:
        text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
        assert "import vllm.entrypoints" not in text, name
        assert "from vllm.entrypoints" not in text, name
        assert "from vllm.v1.worker.gpu_worker" not in text, name
