# SPDX-License-Identifier: Apache-2.0
"""The files of the page. What they do in a browser: ``make page-check``."""

import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urljoin

import pytest
import requests
from PIL import Image
from starlette.applications import Starlette
from starlette.testclient import TestClient

from tests.server.process import ServerProcess
from vllm_lladav.model.lladav.family import LLADAV
from vllm_lladav.page.serving import FILES, HEADERS
from vllm_lladav.server.gate import Gate

NAMES = sorted(str(path.relative_to(FILES)) for path in FILES.rglob("*.*"))


def test_the_real_server_has_it(server: ServerProcess) -> None:
    """Under both spellings, and every file as it is."""
    for path in ("/lladav", "/lladav/"):
        page = requests.get(server.url + path, timeout=10)
        assert page.url == f"{server.url}/lladav/"
        assert page.text == Path(FILES, "index.html").read_text(encoding="utf-8")
    for name in NAMES:
        found = requests.get(f"{server.url}/lladav/{name}", timeout=10)
        assert found.content == Path(FILES, name).read_bytes()
        assert {**HEADERS, **found.headers} == {**found.headers, **HEADERS}
    types = {".js": "text/javascript", ".css": "text/css", ".png": "image/png"}
    for suffix, expected in types.items():
        name = next(name for name in NAMES if name.endswith(suffix))
        found = requests.get(f"{server.url}/lladav/{name}", timeout=10)
        assert found.headers["Content-Type"].startswith(expected)


@pytest.mark.parametrize("path", ["nothing.js", "../server/gate.py", "..%2fserving.py"])
def test_nothing_else_is_there(server: ServerProcess, path: str) -> None:
    session = requests.Session()
    request = requests.Request("GET", server.url).prepare()
    request.url = f"{server.url}/lladav/{path}"
    assert session.send(request, timeout=10).status_code == 404


class References(HTMLParser):
    """What a page loads, and what it does by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.loaded += [given[k] or "" for k in ("src", "href") if k in given]
        self.inline += [key for key in given if key.startswith("on") or key == "style"]
        if tag == "style" or (tag == "script" and "src" not in given):
            self.inline.append(tag)


def test_nothing_foreign_is_loaded_and_nothing_is_inline() -> None:
    """The policy would forbid it, and the page works without a network."""
    page = References()
    page.feed(Path(FILES, "index.html").read_text(encoding="utf-8"))
    assert not page.inline
    own = [name for name in page.loaded if not name.startswith("data:")]
    assert set(own) <= set(NAMES) and len(own) > 5
    for name in NAMES:
        if name.endswith((".js", ".css", ".html")):
            text = Path(FILES, name).read_text(encoding="utf-8")
            assert "://" not in text and "@import" not in text, name
            assert not re.search(r"\burl\((?!\))", text), name
            for imported in re.findall(r'^import .* from "(.*)";$', text, re.MULTILINE):
                assert urljoin(name, imported) in NAMES
            assert "innerHTML" not in text and "eval(" not in text, name


def test_samples_are_small_pictures() -> None:
    samples = [name for name in NAMES if name.startswith("samples/")]
    assert len(samples) == 4
    for name in samples:
        with Image.open(FILES / name) as picture:
            assert max(picture.size) <= 192
        assert Path(FILES, name).stat().st_size < 4096


@pytest.fixture
def gated() -> TestClient:
    """The gate before a server with a key."""
    options = {"live_canvas": "on"}
    app: Any = Starlette()
    app.state.args = SimpleNamespace(api_key=["secret"])
    app.state.engine_client = SimpleNamespace(
        model_config=SimpleNamespace(architecture=LLADAV.architecture),
        vllm_config=SimpleNamespace(additional_config={"lladav": options}),
    )
    app.add_middleware(Gate)
    # Without its lifespan, in which the engine's pulse is felt.
    return TestClient(app)


@pytest.mark.parametrize("root_path", ["", "/prefix"])
def test_files_need_no_key(gated: TestClient, root_path: str) -> None:
    """Behind a proxy that adds a prefix, too. What is near them does."""
    client = TestClient(gated.app, root_path=root_path)
    for path in ("/lladav", "/lladav/", "/lladav/main.js"):
        found = client.get(root_path + path)
        assert found.status_code == 200, path
        assert found.headers["Content-Security-Policy"].startswith("default-src 'none'")
    for path in ("/", "/lladavx", "/v1/models"):
        assert client.get(root_path + path).status_code == 401
    assert client.post(f"{root_path}/lladav/").status_code == 405
