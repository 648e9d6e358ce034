# SPDX-License-Identifier: Apache-2.0
"""A fresh clone and the server of the README."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT
from tests.server.process import ServerProcess, free_port


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a clone of this checkout, with this environment as its ``.venv``."""
    clone = tmp_path_factory.mktemp("docs") / "vllm-lladav"
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, os.fsdecode(listing.stdout).split("\0")):
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name)
    (clone / ".venv").symlink_to(sys.prefix)
    return clone


@pytest.fixture(scope="package")
def made_server(
    clone: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """The server that a newcomer has, shared by all tests of this folder."""
    port = free_port()
    # The clone's environment is this one: make has nothing to set up.
    command = ["make", "serve", "STAMP=.venv", f"PORT={port}"]
    log = tmp_path_factory.mktemp("made") / "server.log"
    server = ServerProcess(command, port, log, cwd=clone)
    try:
        server.wait_until_healthy()
        yield server
    finally:
        server.stop()
