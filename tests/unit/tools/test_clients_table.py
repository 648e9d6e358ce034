# SPDX-License-Identifier: Apache-2.0
"""docs/clients.md says what was found, about every client of examples/clients."""

from pathlib import Path

import pytest

from examples.clients import clients, table

FOLDER = Path(clients.__file__).parent
HELPERS = {"clients.py", "environments.py", "run.py", "table.py", "trials.py"}


def test_every_script_is_a_client():
    scripts = {path.name for path in FOLDER.iterdir() if path.is_file()}
    assert scripts - HELPERS == {client.script for client in clients.CLIENTS}


def test_the_page_has_the_table_of_the_results():
    """``make clients-check`` writes both."""
    page = table.PAGE.read_text(encoding="utf-8")
    assert page.count("<!-- clients -->\n") == 1
    assert table.with_table(page, table.read_results()) == page


@pytest.mark.parametrize("client", clients.CLIENTS, ids=lambda client: client.script)
def test_every_client_has_results_of_its_trials(client: clients.Client):
    result = table.read_results()[client.script]
    assert result["version"]
    assert set(result["trials"]) == set(client.trials) <= set(clients.TRIALS)
