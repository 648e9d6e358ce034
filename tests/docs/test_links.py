# SPDX-License-Identifier: Apache-2.0
"""Links between pages, to their headings and to files lead somewhere."""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from markdown_it.token import Token

from tests.docs.blocks import PAGES, ROOT, tokens_of


def inline_tokens(page: Path) -> Iterator[Token]:
    for token in tokens_of(page):
        yield from token.children or ()


def anchors_of(page: Path) -> set[str]:
    """Names of the headings, as GitHub and the site's pages make them."""
    tokens = tokens_of(page)
    headings = [
        text for token, text in pairwise(tokens) if token.type == "heading_open"
    ]
    names = set()
    for heading in headings:
        text = "".join(child.content for child in heading.children or ())
        names.add(re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-"))
    return names


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path) -> None:
    """A folder is no target: the site has pages and files."""
    targets = [
        str(token.attrs.get("href") or token.attrs["src"])
        for token in inline_tokens(page)
        if token.type in ("link_open", "image")
    ]
    broken = []
    for target in targets:
        parts = urlsplit(target)
        if parts.scheme:
            continue
        file = (ROOT / page).parent / unquote(parts.path) if parts.path else ROOT / page
        if not file.is_file() or (
            parts.fragment
            and parts.fragment not in anchors_of(file.resolve().relative_to(ROOT))
        ):
            broken.append(target)
    assert not broken
