# SPDX-License-Identifier: Apache-2.0
"""The table of docs/clients.md, from the results of the runner."""

import json
import re
from pathlib import Path
from typing import Any

if __package__:
    from examples.clients.clients import CLIENTS, TRIALS
else:
    from clients import CLIENTS, TRIALS

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "clients.md"
RESULTS = DOCS / "clients" / "results.json"

Results = dict[str, dict[str, Any]]
"""Script -> version, and outcomes by the name of their trial."""

_MARKS = re.compile(r"(<!-- clients -->\n).*?(<!-- end of clients -->)", re.S)


def read_results() -> Results:
    """Nothing where no client has been tried."""
    results: Results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return results


def write_results(results: Results) -> None:
    """As a file, and as the table in the page."""
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_table(page, results), encoding="utf-8")


def with_table(page: str, results: Results) -> str:
    """``page`` with the table of ``results`` between its marks."""
    return _MARKS.sub(lambda marks: f"{marks[1]}{_table(results)}{marks[2]}", page)


def _table(results: Results) -> str:
    rows = [["Client", "Version", *TRIALS.values()], ["---"] * (2 + len(TRIALS))]
    for client in CLIENTS:
        if client.script not in results:
            continue
        result = results[client.script]
        link = f"[{client.title}](../examples/clients/{client.script})"
        cells = [
            result["trials"].get(trial, {}).get("outcome", "-") for trial in TRIALS
        ]
        rows.append([link, result["version"], *cells])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
