# SPDX-License-Identifier: Apache-2.0
"""``docs/metrics.md`` has the metrics of a running server, and no others."""

import re

import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.docs.blocks import ROOT
from tests.server.process import ServerProcess
from vllm_lladav.server.outcomes import OUTCOMES

ROW = re.compile(r"^\| `(lladav:\w+)` \| (\w+) \| ([`\w, ]+) \| \S.* \|$", re.M)
PAGE = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")


def test_page_lists_what_a_server_shows(made_server: ServerProcess) -> None:
    exported = {}
    text = requests.get(f"{made_server.url}/metrics", timeout=10).text
    for family in text_string_to_metric_families(text):
        # What the client library adds to each counter is no metric of its own.
        if re.fullmatch(r"lladav:\w+(?<!_created)", family.name):
            name = family.name + "_total" * (family.type == "counter")
            labels = {label for sample in family.samples for label in sample.labels}
            exported[name] = (family.type, labels - {"le"})
    listed = {
        name: (kind, set(re.findall(r"\w+", labels)))
        for name, kind, labels in ROW.findall(PAGE)
    }
    assert listed == exported


def test_expressions_name_metrics_that_exist() -> None:
    listed = {name for name, _, _ in ROW.findall(PAGE)}
    named = set(re.findall(r"lladav:\w+", PAGE)) - {"lladav:requests"}
    assert {name.removesuffix("_bucket") for name in named} == listed


def test_page_lists_the_outcomes() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.M) == list(OUTCOMES)
