# SPDX-License-Identifier: Apache-2.0
"""The README says what is declared."""

from pathlib import Path

from option_tables import tables, with_tables

README = Path(__file__).parents[3] / "README.md"


def test_tables_of_the_readme_are_those_of_the_declarations():
    """``python tools/option_tables.py README.md`` writes them."""
    text = README.read_text(encoding="utf-8")
    for name in tables():
        assert text.count(f"<!-- options: {name} -->\n") == 1
    assert with_tables(text) == text
