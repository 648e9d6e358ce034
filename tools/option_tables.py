# SPDX-License-Identifier: Apache-2.0
"""The documentation's tables of options.

    python tools/option_tables.py docs/*.md

writes them between their marks, from the declarations.
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from vllm_lladav.options.option import Option, options_of
from vllm_lladav.options.options import (
    DenoisingOptions,
    PruningOptions,
    ServerOptions,
)

_MARKS = re.compile(r"(<!-- options: (\w+) -->\n).*?(<!-- end of options -->)", re.S)


def tables() -> dict[str, str]:
    """Tables in Markdown, by the name in their marks."""
    server = options_of(ServerOptions).values()
    return {
        "denoising": _table(options_of(DenoisingOptions).values()),
        "server": _table(option for option in server if not option.in_request),
        "pruning": _table(options_of(PruningOptions).values()),
    }


def with_tables(text: str) -> str:
    """``text`` with the tables between their marks as they are declared."""
    known = tables()
    return _MARKS.sub(lambda mark: f"{mark[1]}{known[mark[2]]}{mark[3]}", text)


def _table(options: Iterable[Option]) -> str:
    rows: list[tuple[str, ...]]
    rows = [("Flag", "`vllm_xargs`", "Meaning", "Default"), ("---",) * 4]
    for option in options:
        names = option.kind.argument.get("choices", ())
        one_of = f"; one of {', '.join(f'`{name}`' for name in names)}"
        flag = f"`{option.flag}`" if option.is_flag else ""
        name = f"`{option.name}`" if option.in_request else ""
        meaning = option.help + (one_of if names else "")
        rows.append((flag, name, meaning, option.default_text))
    if not any(row[1] for row in rows[2:]):
        rows = [(row[0], *row[2:]) for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        text = path.read_text(encoding="utf-8")
        path.write_text(with_tables(text), encoding="utf-8")
