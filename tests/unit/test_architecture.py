# SPDX-License-Identifier: Apache-2.0
"""Who imports whom: the house of ``docs/architecture.md``, read from the code."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "vllm_lladav"

PURE = ("denoising", "options", "pruning")
"""Rooms without vLLM."""

MAY_IMPORT = {
    "pruning": set(),
    "options": {"pruning"},
    "denoising": {"options", "pruning"},
    "tiny": set(),
    "scheduler": {"denoising", "options"},
    "kernels": set(),
    "worker": {"denoising", "kernels", "pruning"},
    # vLLM's hook: the model names its worker state.
    "model": {"denoising", "pruning", "tiny", "worker"},
    "live": {"denoising", "model", "options"},
    "page": set(),
    "frontend": {"denoising", "live", "model", "options", "scheduler"},
    "server": {"model", "options", "page"},
    "patches": {"frontend", "live", "model", "options", "scheduler", "server"},
    "tools": {"denoising", "model", "options", "pruning", "tiny", "worker"},
    "plugin": {"frontend", "model", "patches"},
}
"""Rooms, and what each of them knows of the others."""


def _modules() -> dict[str, Path]:
    """Dotted name -> file."""
    found = {}
    for folder, name in ((ROOT / PACKAGE, PACKAGE), (ROOT / "patches", "patches")):
        for path in folder.rglob("*.py"):
            relative = path.relative_to(folder)
            if relative.parts[0] == "patches":
                continue  # A link that some checkouts have.
            parts = [*relative.parent.parts, relative.stem]
            prefix = PACKAGE if name == PACKAGE else f"{PACKAGE}.patches"
            dotted = ".".join([prefix, *parts]).removesuffix(".__init__")
            found[dotted] = path
    return found


MODULES = _modules()


def _imports(module: str) -> set[str]:
    """Everything that a module imports: also late, and for type checks only."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            assert node.module is not None
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = names & MODULES.keys()
            # A package is imported too where a name of its own is asked for.
            found |= modules if modules == names else {*modules, node.module}
    return found


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_no_circle():
    graph = {module: _imports(module) & MODULES.keys() for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_room_is_known():
    rooms = {_room(module) for module in MODULES} - {""}
    assert rooms == MAY_IMPORT.keys()


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_know_what_they_may(room: str):
    for module in MODULES:
        if _room(module) != room:
            continue
        for name in _imports(module) & MODULES.keys():
            allowed = {room, "", *MAY_IMPORT[room]}
            assert _room(name) in allowed, f"{module} imports {name}"


@pytest.mark.parametrize("room", PURE)
def test_pure_rooms_have_no_vllm(room: str):
    for module in MODULES:
        if _room(module) == room:
            names = {name.partition(".")[0] for name in _imports(module)}
            assert "vllm" not in names, module
