# SPDX-License-Identifier: Apache-2.0
"""Panels and alerts ask for what a server exports; every alert is tested and explained.

Whether the queries parse and the alerts fire is ``make monitoring-check``.
"""

import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.monitoring import (
    LABELS_OF_PROMETHEUS,
    OF_PROMETHEUS,
    Query,
    dashboard,
    panels,
    queries,
    rules,
)
from tests.server.client import post, small_chat
from tests.server.process import ServerProcess

ROOT = Path(__file__).parents[2]
ALERT_TESTS = Path(__file__).with_name("alerts_test.yml")


@pytest.fixture(scope="module")
def exported(server: ServerProcess) -> dict[str, set[str]]:
    """Names of samples on ``/metrics`` after a request, with those of their labels."""
    assert post(server.url, "chat/completions", small_chat()).ok
    text = requests.get(f"{server.url}/metrics", timeout=10).text
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.mark.parametrize("query", list(queries()), ids=lambda query: query.where)
def test_metrics_and_labels_are_exported(
    query: Query, exported: dict[str, set[str]]
) -> None:
    names = query.metrics() - OF_PROMETHEUS
    assert names <= exported.keys()
    if names:
        labels = set().union(*(exported[name] for name in names))
        assert query.labels() <= labels | LABELS_OF_PROMETHEUS


def test_names_are_found() -> None:
    """What the test above looks for, in a query with everything that PromQL has."""
    query = Query(
        "",
        'sum by (le, a) (rate(x:y_total{b="q(z)", c=~"$d"}[$__rate_interval])) '
        "/ ignoring (e) f offset 5m > 1e3 and up == 0",
    )
    assert query.metrics() == {"x:y_total", "f", "up"}
    assert query.labels() == {"le", "a", "b", "c", "e"}


def test_panels_do_not_overlap() -> None:
    def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
        x, y, w, h = (panel["gridPos"][key] for key in "xywh")
        assert x + w <= 24
        return {(x + dx, y + dy) for dx in range(w) for dy in range(h)}

    everything = dashboard()["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    for one, other in combinations(everything, 2):
        assert not cells(one) & cells(other), (one["title"], other["title"])


def test_panels_say_what_they_show() -> None:
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]


def test_alerts_are_tested_and_explained() -> None:
    names = {rule["alert"] for rule in rules()}
    fired, silent = set(), set()
    for test in yaml.safe_load(ALERT_TESTS.read_text())["tests"]:
        for case in test["alert_rule_test"]:
            (fired if case.get("exp_alerts") else silent).add(case["alertname"])
    assert fired == silent == names
    explained = (ROOT / "docs/monitoring.md").read_text()
    assert set(re.findall(r"^\| `(Lladav\w+)`", explained, re.M)) == names
