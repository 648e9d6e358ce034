# SPDX-License-Identifier: Apache-2.0
"""Fenced ``bash`` and ``python`` blocks of the documentation.

Each is run as it stands, in the order of its page. A comment of HTML right before a
block says otherwise:

- ``<!-- not run: REASON -->``: nobody runs it, since it cannot run offline on a CPU;
- ``<!-- run by hand: N minutes -->``: ``make docs-check`` runs it, ``make test`` does
  not.

A ``text`` block behind one says what it prints: every line of it, among others.
"""

import re
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page.relative_to(ROOT)
    for pattern in ("*.md", "docs/**/*.md", "examples/**/*.md", "benchmarks/*.md")
    for page in ROOT.glob(pattern)
)
"""Everything that tells people what to type, from the root of the repository."""

LANGUAGES = ("bash", "python")
SERVER = re.compile(r"(?<=//)(localhost|127\.0\.0\.1):8000")
"""The address of the server that ``make serve`` starts."""

_NOT_RUN = re.compile(r"<!-- not run: \S.* -->\n")
_BY_HAND = re.compile(r"<!-- run by hand: (\d+) minutes? -->\n")


@dataclass(frozen=True)
class Block:
    """A block that is run.

    Attributes:
        name: the page and the line of its fence.
        language: one of :data:`LANGUAGES`.
        code: as it stands.
        minutes: how long it takes, if it is run by hand; else 0.
        output: lines that are among what it prints.
    """

    name: str
    language: str
    code: str
    minutes: int
    output: tuple[str, ...]

    @property
    def asks_server(self) -> bool:
        return SERVER.search(self.code) is not None


def tokens_of(page: Path) -> list[Token]:
    """The page's Markdown."""
    return MarkdownIt().enable("table").parse((ROOT / page).read_text(encoding="utf-8"))


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page that are run, by hand or always."""
    tokens = tokens_of(page)
    fences = [i for i, token in enumerate(tokens) if token.type == "fence"]
    blocks = []
    for index, following in zip_longest(fences, fences[1:]):
        fence, before = tokens[index], tokens[index - 1] if index else None
        marker = before.content if before and before.type == "html_block" else ""
        if fence.info not in LANGUAGES or _NOT_RUN.fullmatch(marker):
            continue
        by_hand = _BY_HAND.fullmatch(marker)
        prints = following is not None and tokens[following].info == "text"
        blocks.append(
            Block(
                name=f"{page}:{(fence.map or [0])[0] + 1}",
                language=fence.info,
                code=fence.content,
                minutes=int(by_hand[1]) if by_hand else 0,
                output=tuple(tokens[following].content.splitlines()) if prints else (),
            )
        )
    return blocks
