# SPDX-License-Identifier: Apache-2.0
"""Check, build and tag a release. Uploading is left to a person.

    .venv/bin/python tools/release.py [--dry-run]      # make release

What is built is what is committed: a source distribution of ``HEAD``, and from that the
wheel. Beside them, in ``dist/``, lies a bill of materials (CycloneDX) for each list of
versions in ``tools/locked``.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from index_readme import project, repository

ROOT = Path(__file__).resolve().parent.parent
_HEADING = re.compile(r"^## \[(?P<name>.+?)\](?: - (?P<date>\d{4}-\d\d-\d\d))?$", re.M)


def hindrances(root: Path) -> list[str]:
    """Why the checkout at ``root`` cannot be released; empty if it can."""
    found = []
    if _git(root, "status", "--porcelain"):
        found.append("there are changes that are not committed")
    version = project(root)["version"]
    if f'\n__version__ = "{version}"\n' not in _read(root, "vllm_lladav/__init__.py"):
        found.append("__version__ in vllm_lladav is not the version in pyproject.toml")
    if _git(root, "tag", "--list", f"v{version}"):
        found.append(f"the tag v{version} exists")
    found += _unsaid(_read(root, "CHANGELOG.md"), version)
    if not (repository(root) or "").startswith("https://"):
        found.append(
            "the public address is not known: set Repository in [project.urls] of "
            "pyproject.toml"
        )
    return found


def _unsaid(changelog: str, version: str) -> list[str]:
    """What the changelog has to say before ``version`` can be released."""
    headings = list(_HEADING.finditer(changelog))
    if [heading["name"] for heading in headings[:1]] != ["Unreleased"]:
        return ["the first heading of CHANGELOG.md is not [Unreleased]"]
    end = headings[1].start() if len(headings) > 1 else len(changelog)
    if changelog[headings[0].end() : end].strip():
        return [f"CHANGELOG.md has entries under [Unreleased], not under [{version}]"]
    if len(headings) < 2 or headings[1]["name"] != version or not headings[1]["date"]:
        return [f"CHANGELOG.md does not go on with [{version}] and its date"]
    return []


def build(root: Path, out: Path) -> list[Path]:
    """Build ``HEAD`` of ``root`` into ``out``: distributions, bills of materials."""
    with tempfile.TemporaryDirectory() as scratch:
        archive, source = Path(scratch, "head.tar"), Path(scratch, "source")
        _git(root, "archive", "--output", str(archive), "HEAD")
        with tarfile.open(archive) as tar:
            tar.extractall(source, filter="data")
        _python("build", "--no-isolation", "--outdir", str(out), str(source))
        built = [*out.glob("*.tar.gz"), *out.glob("*.whl")]
        _python("twine", "check", "--strict", *map(str, built))
        for versions in sorted((source / "tools" / "locked").glob("*.txt")):
            name = f"vllm-lladav-{project(source)['version']}-{versions.stem}.cdx.json"
            built.append(out / name)
            _python(
                "cyclonedx_py",
                "requirements",
                str(versions),
                f"--pyproject={source / 'pyproject.toml'}",
                "--output-reproducible",
                f"--output-file={out / name}",
            )
    return built


def _read(root: Path, name: str) -> str:
    return (root / name).read_text(encoding="utf-8")


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _python(module: str, *arguments: str) -> None:
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="build whatever hinders the release, and tag nothing",
    )
    arguments = parser.parse_args(argv)
    version = project(ROOT)["version"]
    reasons = hindrances(ROOT)
    for reason in reasons:
        print(f"{version} cannot be released: {reason}", file=sys.stderr)
    if reasons and not arguments.dry_run:
        return 1
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    built = [str(path.relative_to(ROOT)) for path in build(ROOT, ROOT / "dist")]
    print("Built", *built, sep="\n  ")
    if arguments.dry_run:
        return bool(reasons)
    tag = f"v{version}"
    _git(ROOT, "tag", "--annotate", tag, "--message", f"vllm-lladav {version}")
    print(f"Tagged {tag}. To publish it:\n  git push origin {tag}")
    print("  .venv/bin/twine upload", *built[:2])
    return 0


if __name__ == "__main__":
    sys.exit(main())
