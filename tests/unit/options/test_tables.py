# SPDX-License-Identifier: Apache-2.0
"""The documentation says what is declared."""

from pathlib import Path

from option_tables import tables, with_tables

PAGES = (Path(__file__).parents[3] / "docs").glob("*.md")


def test_tables_of_the_documentation_are_those_of_the_declarations():
    """``python tools/option_tables.py docs/*.md`` writes them."""
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    for name in tables():
        assert sum(text.count(f"<!-- options: {name} -->\n") for text in texts) == 1
    assert [with_tables(text) for text in texts] == texts
