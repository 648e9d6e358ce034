# SPDX-License-Identifier: Apache-2.0
"""Clients of the session's server."""

from collections.abc import Generator, Iterator
from typing import Any

import pytest
from openai import OpenAI

from tests.server.client import openai_client
from tests.server.process import ServerProcess


@pytest.fixture(scope="session")
def client(server: ServerProcess) -> Iterator[OpenAI]:
    with openai_client(server.url) as client:
        yield client


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the server's last words with a failed test."""
    report = yield
    server = getattr(item, "funcargs", {}).get("server")
    if report.failed and isinstance(server, ServerProcess):
        report.sections.append(("server log", server.log_tail()))
    return report
