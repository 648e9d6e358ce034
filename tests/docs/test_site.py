# SPDX-License-Identifier: Apache-2.0
"""The site can be made, every link in it leads somewhere, and it needs nothing else."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.docs.blocks import ROOT

# What a browser loads by itself; links that people follow may lead anywhere.
FOREIGN = re.compile(
    r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"?(?:https?:)?//"
)


def test_site_is_whole_and_fetches_nothing(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert built.returncode == 0, built.stdout
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        assert not FOREIGN.search(page.read_text(encoding="utf-8")), page
