# SPDX-License-Identifier: Apache-2.0
"""The README says what is declared."""

from pathlib import Path

from vllm_lladav.options.tables import tables, with_tables

README = Path(__file__).parents[3] / "README.md"


def test_tables_of_the_readme_are_those_of_the_declarations():
    """``python -m vllm_lladav.options.tables README.md`` writes them."""
    text = README.read_text(encoding="utf-8")
    for name in tables():
        assert text.count(f"<!-- options: {name} -->\n") == 1
    assert with_tables(text) == text
