# SPDX-License-Identifier: Apache-2.0
"""A release of the tracked files as they are, by the script that makes releases."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://example.org/vllm-lladav"


def git(root: Path, *arguments: str) -> str:
    who = ["-c", "user.name=Nobody", "-c", "user.email=nobody@example.org"]
    command = ["git", "-C", str(root), *who, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.fixture(scope="session")
def tracked() -> set[str]:
    """Paths of the files that belong to the project."""
    return set(git(ROOT, "ls-files", "-z").split("\0")) - {""}


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory, tracked: set[str]) -> Path:
    """A repository with these files, of a project that has an address and a version
    to release."""
    root = tmp_path_factory.mktemp("checkout")
    for name in tracked:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, root / name)
    pyproject = (root / "pyproject.toml").read_text()
    urls = "[project.urls]\n"
    assert pyproject.count(urls) == 1
    address = f'{urls}Repository = "{REPOSITORY}"\n'
    (root / "pyproject.toml").write_text(pyproject.replace(urls, address))
    changes = "## [Unreleased]\n\n## [0.1.0] - 2027-01-01\n\n### Added\n\n- All.\n"
    (root / "CHANGELOG.md").write_text(changes)
    git(root, "init", "--quiet")
    git(root, "add", "--all", "--force")
    git(root, "commit", "--quiet", "--message", "All")
    return root


@pytest.fixture(scope="session")
def released(checkout: Path) -> Path:
    """The folder with what the release script built."""
    environment = {
        **os.environ,
        "GIT_COMMITTER_NAME": "Nobody",
        "GIT_COMMITTER_EMAIL": "nobody@example.org",
    }
    command = [sys.executable, str(checkout / "tools" / "release.py")]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return checkout / "dist"


@pytest.fixture(scope="session")
def wheel(released: Path) -> Path:
    (path,) = released.glob("*.whl")
    return path
