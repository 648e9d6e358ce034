# SPDX-License-Identifier: Apache-2.0
"""Scripts of examples/clients whose client is installed here, against the server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.clients import clients
from tests.server.client import MODEL
from tests.server.process import ServerProcess

FOLDER = Path(clients.__file__).parent
SCRIPTS = {
    client.script: [trial for trial in client.trials if trial != "structured"]
    for client in clients.CLIENTS
    if client.requirements == ("openai",) and not client.with_node
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_script(script: str, server: ServerProcess):
    trials = SCRIPTS[script]
    done = subprocess.run(
        [sys.executable, str(FOLDER / script), *trials],
        env={**os.environ, "BASE_URL": f"{server.url}/v1", "MODEL": MODEL},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["trial"] for line in lines] == trials
    for line in lines:
        assert line["answer"]
        assert (line["pieces"] > 1) == (line["trial"] == "streaming")
