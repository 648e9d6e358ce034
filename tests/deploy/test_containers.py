# SPDX-License-Identifier: Apache-2.0
"""Compose file, Dockerfiles and configuration agree with each other and the server."""

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.monitoring import DASHBOARD, DOCKER, PROMETHEUS
from vllm_lladav.server import draining

DOCKERFILES = {"server": "Dockerfile.cpu", "server-gpu": "Dockerfile.cuda"}
GRAFANA = DOCKER / "grafana/provisioning"


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = load(DOCKER / "compose.yaml")["services"]
    return found


def instruction(service: str, name: str) -> str:
    """The last one of this name; of a health check, what follows ``CMD``."""
    text = (DOCKER / DOCKERFILES[service]).read_text().replace("\\\n", " ")
    return re.findall(rf"^{name}\b(?:.*\bCMD)?\s*(.*)$", text, re.M)[-1]


@pytest.mark.parametrize("service", DOCKERFILES)
def test_containers_wait_for_the_last_answer(
    service: str, services: dict[str, Any]
) -> None:
    """As long as a server with the image's flags may take to end."""
    command = json.loads(instruction(service, "ENTRYPOINT"))
    timeout_s = float(command[command.index("--shutdown-timeout") + 1])
    rest_s = draining.LAST_WORDS_S + draining.ENGINE_EXIT_S + draining.CONNECTIONS_S
    grace_s = float(services[service]["stop_grace_period"].removesuffix("s"))
    assert grace_s > timeout_s + rest_s


@pytest.mark.parametrize("service", DOCKERFILES)
def test_images_run_the_server_itself(service: str, services: dict[str, Any]) -> None:
    """Not a shell that keeps signals, not root, on the port that everybody asks."""
    command = json.loads(instruction(service, "ENTRYPOINT"))
    assert command[:2] == ["vllm", "serve"]
    port = command[command.index("--port") + 1]
    assert instruction(service, "EXPOSE") == port
    assert services[service]["ports"] == [f"127.0.0.1:${{PORT:-8000}}:{port}"]
    assert (
        f"127.0.0.1:{port}/health"
        in json.loads(instruction(service, "HEALTHCHECK"))[-1]
    )
    assert not instruction(service, "USER").startswith(("0", "root"))
    build = services[service]["build"]
    assert build["dockerfile"] == f"examples/docker/{DOCKERFILES[service]}"
    (target,) = load(PROMETHEUS)["scrape_configs"][0]["static_configs"][0]["targets"]
    (alias,) = services[service]["networks"]["default"]["aliases"]
    assert target == f"{alias}:{port}"


def test_the_cpu_image_is_installed_by_what_is_there() -> None:
    """The script finds in tools/ what it calls."""
    assert "main" in runpy.run_path(str(DOCKER / "install.py"))


def test_grafana_finds_the_dashboard(services: dict[str, Any]) -> None:
    grafana = services["grafana"]
    mounts = dict(volume.split(":")[:2] for volume in grafana["volumes"])
    (source,) = load(GRAFANA / "datasources/prometheus.yaml")["datasources"]
    (provider,) = load(GRAFANA / "dashboards/lladav.yaml")["providers"]
    folder = provider["options"]["path"]
    assert mounts["./grafana/dashboards"] == folder
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{folder}/{DASHBOARD.name}"
    assert source["url"] == "http://prometheus:9090" and "prometheus" in services
    interval = load(PROMETHEUS)["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval


def test_mounts_exist(services: dict[str, Any]) -> None:
    for name, service in services.items():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DOCKER / source).is_dir(), (name, volume)
