# SPDX-License-Identifier: Apache-2.0
"""Reading ``/metrics``."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import requests
from prometheus_client.parser import text_string_to_metric_families

Metrics = dict[str, float]


def read_metrics(url: str) -> Metrics:
    """Samples without labels of their own, by name, summed over the engines."""
    response = requests.get(f"{url}/metrics", timeout=10)
    response.raise_for_status()
    values: Metrics = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            if set(sample.labels) <= {"engine", "model_name"}:
                values[sample.name] = values.get(sample.name, 0.0) + sample.value
    return values


def wait_for_metrics(
    url: str, is_reached: Callable[[Metrics], bool], seconds: float = 20
) -> Metrics:
    """The first values for which ``is_reached`` holds, or the last ones read."""
    deadline = time.monotonic() + seconds
    values = read_metrics(url)
    while not is_reached(values) and time.monotonic() < deadline:
        time.sleep(0.1)
        values = read_metrics(url)
    return values


def is_idle(values: Metrics) -> bool:
    return values["vllm:num_requests_running"] == 0


def num_in_engine(values: Metrics) -> float:
    """Requests that run, and that wait for their first step."""
    return values["vllm:num_requests_running"] + values["vllm:num_requests_waiting"]


class Counted:
    """By how much each sample grew within a ``with`` block.

    Requests of other tests must not run meanwhile. Statistics reach the endpoint
    at the latest with the iteration that finishes the last request.
    """

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> Self:
        self._before = wait_for_metrics(self._url, is_idle)
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._after = wait_for_metrics(self._url, is_idle)

    def __getitem__(self, name: str) -> float:
        return self._after[name] - self._before.get(name, 0.0)
