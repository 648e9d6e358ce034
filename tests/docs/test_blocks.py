# SPDX-License-Identifier: Apache-2.0
"""Every command of the documentation does what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, SERVER, Block, blocks_of, tokens_of

MINUTES = int(os.environ.get("DOCS_MINUTES", "0"))
"""Blocks that are run by hand are run, too, if they take no more."""

UNFIT = re.compile(r"\bmake (setup|test|docs-check)\b")
"""What would set up or run anew what runs it."""

COMMANDS = ("make", "vllm", "vllm-lladav", "python", "pip", "curl", "docker")


def runs() -> list[object]:
    """Blocks as parameters, those that take long with more time to do so."""
    return [
        pytest.param(
            block,
            id=block.name,
            marks=pytest.mark.timeout(300 + 180 * block.minutes),
        )
        for page in PAGES
        for block in blocks_of(page)
        if block.minutes <= MINUTES
    ]


@pytest.mark.parametrize("block", runs())
def test_block_runs(
    block: Block, clone: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    assert not UNFIT.search(block.code), "say that it is not run"
    code = block.code
    if block.asks_server:
        url = request.getfixturevalue("made_server").url
        code = SERVER.sub(url.removeprefix("http://"), code)
    script = tmp_path / "block"
    script.write_text(code, encoding="utf-8")
    shells = {"bash": ["bash", "-euo", "pipefail"], "python": [sys.executable]}
    result = subprocess.run(
        [*shells[block.language], str(script)],
        cwd=clone,
        env=activated(clone),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    for line in block.output:
        assert line in result.stdout


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_stand_in_blocks_that_are_run(page: Path) -> None:
    """Indented code and other names of shells would not be found."""
    for token in tokens_of(page):
        if token.type == "fence":
            assert token.info not in ("", "sh", "shell", "console", "py")
        elif token.type == "code_block":
            assert not token.content.startswith(COMMANDS)


def activated(clone: Path) -> dict[str, str]:
    """The environment after ``make setup`` and ``source .venv/bin/activate``."""
    return {
        **os.environ,
        "PATH": f"{clone / '.venv/bin'}:{os.environ['PATH']}",
        # The clone's environment is this one: make has nothing to set up.
        "MAKEFLAGS": "STAMP=.venv",
    }
