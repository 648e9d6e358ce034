# SPDX-License-Identifier: Apache-2.0
"""README.md away from the repository."""

import pytest

from index_readme import with_absolute_links

HERE = "https://example.org/here"


@pytest.mark.parametrize(
    ("text", "with_address", "without"),
    [
        ("[a](docs/a.md)", f"[a]({HERE}/blob/v1/docs/a.md)", "a"),
        ("[a](docs/a.md#b)", f"[a]({HERE}/blob/v1/docs/a.md#b)", "a"),
        ("[`a`](tools)", f"[`a`]({HERE}/blob/v1/tools)", "`a`"),
        ("[a](#b)", f"[a]({HERE}#b)", "a"),
        ("![a](docs/a.png)", f"![a]({HERE}/raw/v1/docs/a.png)", ""),
        ("[a](https://a.org)", "[a](https://a.org)", "[a](https://a.org)"),
        ("[a](mailto:a@b.org)", "[a](mailto:a@b.org)", "[a](mailto:a@b.org)"),
        ("clone <this repository>", f"clone {HERE}", "clone <this repository>"),
        ("```\n[a](b)\n```", "```\n[a](b)\n```", "```\n[a](b)\n```"),
    ],
)
def test_links(text: str, with_address: str, without: str) -> None:
    assert with_absolute_links(text, HERE, "v1") == with_address
    assert with_absolute_links(text, None, "v1") == without
