# SPDX-License-Identifier: Apache-2.0
"""What hinders a release is said before anything is built."""

import subprocess
import sys
from pathlib import Path

import pytest

from release import hindrances
from tests.packaging.conftest import REPOSITORY, ROOT, git

FILES = {
    "pyproject.toml": f"""\
[project]
version = "1.2.0"
[project.urls]
Repository = "{REPOSITORY}"
""",
    "vllm_lladav/__init__.py": '"""Package."""\n\n__version__ = "1.2.0"\n',
    "CHANGELOG.md": "# Changes\n\n## [Unreleased]\n\n## [1.2.0] - 2027-01-01\n\n- A.\n",
}


def repository(root: Path, **changed: str) -> Path:
    """A repository that can be released, but for what is changed in its files.

    Args:
        changed: by the name of a file, what stands in it, a bar, and what shall.
    """
    for name, text in FILES.items():
        old, _, new = changed.get(Path(name).stem.strip("_"), "|").partition("|")
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.replace(old, new) if old else text)
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "All")
    return root


def test_nothing_hinders(tmp_path: Path) -> None:
    assert hindrances(repository(tmp_path)) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"pyproject": f'Repository = "{REPOSITORY}"|'}, "set Repository in"),
        ({"init": "1.2.0|1.2.1"}, "__version__ in vllm_lladav"),
        ({"CHANGELOG": "[Unreleased]\n|[Unreleased]\n\n- B.\n"}, "has entries under"),
        ({"CHANGELOG": "## [Unreleased]\n|"}, "is not [Unreleased]"),
        ({"CHANGELOG": " - 2027-01-01|"}, "[1.2.0] and its date"),
        ({"CHANGELOG": "[1.2.0]|[1.1.0]"}, "[1.2.0] and its date"),
        ({"CHANGELOG": "## [1.2.0] - 2027-01-01\n\n- A.\n|"}, "[1.2.0] and its date"),
    ],
    ids=str,
)
def test_a_file_hinders(tmp_path: Path, changed: dict[str, str], words: str) -> None:
    (reason,) = hindrances(repository(tmp_path, **changed))
    assert words in reason


def test_a_tag_hinders(tmp_path: Path) -> None:
    git(repository(tmp_path), "tag", "v1.2.0")
    assert hindrances(tmp_path) == ["the tag v1.2.0 exists"]


def test_a_change_hinders(tmp_path: Path) -> None:
    (repository(tmp_path) / "new.py").touch()
    assert hindrances(tmp_path) == ["there are changes that are not committed"]


def test_a_hindered_release_builds_nothing(tmp_path: Path) -> None:
    repository(tmp_path, init="1.2.0|1.2.1")
    for name in ("index_readme.py", "release.py"):
        path = tmp_path / "tools" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text((ROOT / "tools" / name).read_text())
    command = [sys.executable, str(tmp_path / "tools" / "release.py")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert "1.2.0 cannot be released: __version__" in result.stderr
    assert not (tmp_path / "dist").exists()
    assert git(tmp_path, "tag", "--list") == ""
