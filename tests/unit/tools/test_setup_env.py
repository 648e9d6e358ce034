# SPDX-License-Identifier: Apache-2.0
"""Which versions ``make setup`` installs."""

import re
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from index_readme import project
from setup_env import LOCKED, ROOT, VLLM_VERSION, SetupError, Venv


def write_wheel(directory: Path, version: str) -> None:
    info = f"thing-{version}.dist-info"
    with zipfile.ZipFile(directory / f"thing-{version}-py3-none-any.whl", "w") as wheel:
        head = f"Metadata-Version: 2.1\nName: thing\nVersion: {version}\n"
        wheel.writestr(f"{info}/METADATA", head)
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{info}/WHEEL", tags)
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A folder with versions 1 and 2 of a distribution."""
    index = tmp_path / "index"
    index.mkdir()
    for version in ("1", "2"):
        write_wheel(index, version)
    return index


def installed(venv: Venv, index: Path, requirement: str) -> list[str]:
    """What pip puts into a new folder."""
    target = index.parent / "target"
    links = ("--no-index", "--find-links", index, "--target", target)
    venv.pip_install("Installing", *links, requirement, hint="none")
    return [path.name for path in target.glob("*.dist-info")]


def this_environment(constraints: Path | None) -> Venv:
    venv = Venv(Path(sys.prefix), constraints)
    venv.python = Path(sys.executable)
    return venv


@pytest.mark.parametrize(
    ("locked", "version", "holds"),
    [("thing==1\n", 1, True), ("thing==3\n", 2, False), (None, 2, True)],
)
def test_locked_versions_or_the_newest(
    index: Path, locked: str | None, version: int, holds: bool
) -> None:
    constraints = None
    if locked is not None:
        constraints = index.parent / "locked.txt"
        constraints.write_text(locked)
    venv = this_environment(constraints)
    assert installed(venv, index, "thing") == [f"thing-{version}.dist-info"]
    assert (venv.constraints == constraints) == holds


def test_what_is_not_there_at_all_is_an_error(index: Path) -> None:
    with pytest.raises(SetupError, match="Installing: failed"):
        installed(this_environment(None), index, "another")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_requirement_has_its_locked_version(device: str) -> None:
    """Names and versions, for any index; those that ``pyproject.toml`` allows."""
    lines = (LOCKED / f"{device}.txt").read_text().splitlines()[1:]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in lines)
    locked = dict(line.split("==") for line in lines)
    assert locked["vllm"] == VLLM_VERSION
    declared = project(ROOT)
    extras = declared["optional-dependencies"].values()
    for text in sum(extras, declared["dependencies"]):
        requirement = Requirement(text)
        if requirement.name != "vllm-lladav":
            version = locked[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), text
