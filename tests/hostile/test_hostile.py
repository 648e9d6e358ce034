# SPDX-License-Identifier: Apache-2.0
"""Two thousand requests that no client should send, many at once, to the server of the
session. ``make fuzz`` sends more."""

import asyncio
from pathlib import Path

import pytest
import requests

from tests.hostile.grammar import Grammar
from tests.hostile.report import write_report
from tests.hostile.sending import Run
from tests.server.process import ServerProcess

NUM_REQUESTS = 2000
SEED = 1
HEALTH_SECONDS = 5
"""More than ``make fuzz`` allows: other programs may run beside the tests."""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_nothing_that_clients_send_stops_the_server(
    server: ServerProcess, tmp_path: Path
) -> None:
    """Every answer is one of a good server, valid requests beside them have theirs, and
    nothing is left afterwards."""
    openapi = requests.get(f"{server.url}/openapi.json", timeout=10).json()
    grammar = Grammar(openapi, SEED)
    run = Run(server.url, server.pid, grammar, HEALTH_SECONDS)
    seen = asyncio.run(run.run(list(range(NUM_REQUESTS))))
    command = f"python -m tests.hostile --seed {SEED} --only {{}}"
    page = write_report(tmp_path, seen, grammar, command)
    assert sum(seen.answers.values()) == NUM_REQUESTS
    assert seen.num_valid > NUM_REQUESTS // 10
    assert not seen.faults, page.read_text()


def test_requests_are_the_same_for_a_seed(server: ServerProcess) -> None:
    openapi = requests.get(f"{server.url}/openapi.json", timeout=10).json()
    once, again = (Grammar(openapi, SEED) for _ in range(2))
    for number in range(0, 500, 7):
        assert once.request(number) == again.request(number)
