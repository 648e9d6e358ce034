# SPDX-License-Identifier: Apache-2.0
"""What the wheel, the source distribution and the bills of materials hold."""

import json
import tarfile
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from readme_renderer import markdown

from tests.packaging.conftest import REPOSITORY, git


@pytest.fixture(scope="module")
def described(wheel: Path) -> Metadata:
    """The wheel's metadata, which are valid by what a package index demands."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return Metadata.from_email(archive.read(name), validate=True)


def test_release_is_tagged(released: Path, checkout: Path) -> None:
    assert git(checkout, "cat-file", "-t", "v0.1.0") == "tag\n"
    assert git(checkout, "rev-parse", "v0.1.0^{}") == git(checkout, "rev-parse", "HEAD")
    assert {path.name for path in released.iterdir()} == {
        "vllm_lladav-0.1.0-py3-none-any.whl",
        "vllm_lladav-0.1.0.tar.gz",
        "vllm-lladav-0.1.0-cpu.cdx.json",
        "vllm-lladav-0.1.0-cuda.cdx.json",
    }


def test_wheel_is_the_package_and_the_patches(wheel: Path, tracked: set[str]) -> None:
    """Every file that is tracked there, the trained checkpoint included, and no other:
    no tests, no benchmarks."""
    package = {name for name in tracked if name.startswith("vllm_lladav/")}
    patches = {f"vllm_lladav/{name}" for name in tracked if name.startswith("patches/")}
    assert "vllm_lladav/tiny/trained/model.safetensors" in package
    assert "vllm_lladav/py.typed" in package
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
    metadata = {name for name in files if ".dist-info/" in name}
    assert files - metadata == package | patches
    info = "vllm_lladav-0.1.0.dist-info"
    assert {f"{info}/licenses/LICENSE", f"{info}/entry_points.txt"} <= metadata


def test_source_has_all_to_build_and_test(released: Path, tracked: set[str]) -> None:
    (path,) = released.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        members = [member.name for member in archive.getmembers() if member.isfile()]
    files = {name.partition("/")[2] for name in members}
    made = {"PKG-INFO", "setup.cfg"}
    assert {name for name in files - tracked if "egg-info/" not in name} == made
    assert {name for name in tracked - files if not name.startswith(".")} == set()


def test_metadata_name_the_project(described: Metadata) -> None:
    assert described.license_expression == "Apache-2.0"
    assert described.license_files == ["LICENSE"]
    assert described.project_urls is not None
    assert described.project_urls["Repository"] == REPOSITORY
    assert described.description_content_type == "text/markdown"


class _Addresses(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [
            value for name, value in attrs if name in ("href", "src") if value
        ]


def test_links_of_the_readme_lead_somewhere(
    described: Metadata, checkout: Path
) -> None:
    """As the package index renders it."""
    assert described.description is not None
    html = markdown.render(described.description)
    assert html is not None
    # The renderer gives every heading a link to itself.
    found = _Addresses(html).found
    addresses = [a for a in found if not a.startswith("#user-content-")]
    assert [a for a in addresses if not a.startswith("https://")] == []
    inside = [a.removeprefix(REPOSITORY) for a in addresses if REPOSITORY in a]
    files = [path for path in inside if not path.startswith("#")]
    assert len(files) > 10
    for path in files:
        _, kind, tag, name = path.split("/", 3)
        assert (kind, tag) in {("blob", "v0.1.0"), ("raw", "v0.1.0")}
        assert (checkout / name.partition("#")[0]).exists(), path


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_bill_of_materials(released: Path, device: str) -> None:
    """Names the project, vLLM and torch with their versions, and no machine."""
    text = (released / f"vllm-lladav-0.1.0-{device}.cdx.json").read_text()
    bill = json.loads(text)
    subject = bill["metadata"]["component"]
    assert (subject["name"], subject["version"]) == ("vllm-lladav", "0.1.0")
    versions = {part["name"]: part["version"] for part in bill["components"]}
    assert versions["vllm"] == "0.32.0"
    assert "torch" in versions
    assert "file:" not in text
