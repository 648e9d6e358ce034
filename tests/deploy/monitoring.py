# SPDX-License-Identifier: Apache-2.0
"""Dashboard and alert rules of examples/docker/, and what their queries name."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

DOCKER = Path(__file__).parents[2] / "examples/docker"
RULES = DOCKER / "prometheus/alerts.yml"
PROMETHEUS = DOCKER / "prometheus/prometheus.yml"
DASHBOARD = DOCKER / "grafana/dashboards/lladav.json"

OF_PROMETHEUS = frozenset({"up", "ALERTS"})
"""Series that no server exports."""
LABELS_OF_PROMETHEUS = frozenset({"instance", "job"})

_KEYWORDS = frozenset({"and", "or", "unless", "bool", "offset"})
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(.*?\)")
_NOT_NAMES = re.compile(r"\{.*?\}|\[.*?\]|\"[^\"]*\"")
_NAME = re.compile(r"(?<!\w)[a-zA-Z_:][\w:]*(?![\w:]|\s*\()")


@dataclass(frozen=True)
class Query:
    """A PromQL expression, and where it stands."""

    where: str
    expr: str

    def metrics(self) -> set[str]:
        """Names of the series that it reads."""
        text = _GROUPING.sub(" ", _NOT_NAMES.sub(" ", self.expr))
        return set(_NAME.findall(text)) - _KEYWORDS

    def labels(self) -> set[str]:
        """Names of the labels that it selects or groups by."""
        selectors = " ".join(re.findall(r"\{(.*?)\}", self.expr))
        found = set(re.findall(r"(\w+)\s*[=!]", selectors))
        for grouping in _GROUPING.findall(self.expr):
            found |= set(re.findall(r"\w+", grouping.partition("(")[2]))
        return found


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return loaded


def panels() -> list[dict[str, Any]]:
    """All panels of the dashboard but the headings of rows."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def queries() -> Iterator[Query]:
    """Of all panels, annotations and alerts."""
    for panel in panels():
        for target in panel["targets"]:
            yield Query(f"panel {panel['title']}", target["expr"])
    for note in dashboard()["annotations"]["list"]:
        yield Query(f"annotation {note['name']}", note["expr"])
    for rule in rules():
        yield Query(f"alert {rule['alert']}", rule["expr"])
