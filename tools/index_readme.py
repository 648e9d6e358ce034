# SPDX-License-Identifier: Apache-2.0
"""README.md as a package index shows it, where a relative link leads nowhere.

``setup.py`` makes the package's readme with it. Standard library only: it runs in the
environment in which the package is built.
"""

import re
import tomllib
from pathlib import Path
from typing import Any

_CODE = re.compile(r"(^```.*?^```$)", re.M | re.S)
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\[\]]*)\]\((?P<target>[^()\s]+)\)")
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:", re.I)
_UNNAMED = "<this repository>"


def project(root: Path) -> dict[str, Any]:
    """What ``pyproject.toml`` says of the project at ``root``."""
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["project"]


def repository(root: Path) -> str | None:
    """The public address of the project, None as long as it has none."""
    return project(root)["urls"].get("Repository")


def index_readme(root: Path) -> str:
    """README.md of the project at ``root``, as a package index shows it."""
    text = (root / "README.md").read_text(encoding="utf-8")
    return with_absolute_links(text, repository(root), f"v{project(root)['version']}")


def with_absolute_links(text: str, repository: str | None, ref: str) -> str:
    """``text`` with links into ``repository`` at ``ref`` instead of relative ones.

    Addresses are those of GitHub. Without a repository the text of a link stays, and an
    image goes.
    """

    def absolute(link: re.Match[str]) -> str:
        image, text, target = link["image"], link["text"], link["target"]
        if _ELSEWHERE.match(target):
            return link[0]
        if repository is None:
            return "" if image else text
        if target.startswith("#"):
            return f"[{text}]({repository}{target})"
        kind = "raw" if image else "blob"
        return f"{image}[{text}]({repository}/{kind}/{ref}/{target})"

    # Every second part is code, since the pattern has one group.
    parts = _CODE.split(text)
    parts[::2] = [_LINK.sub(absolute, part) for part in parts[::2]]
    return "".join(parts).replace(_UNNAMED, repository or _UNNAMED)
