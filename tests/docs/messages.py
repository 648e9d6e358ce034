# SPDX-License-Identifier: Apache-2.0
"""Texts of the code, as people see them."""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

VALUE = "..."
"""Stands for what the code fills in."""


def texts_of(files: Iterable[Path]) -> Iterator[str]:
    """Every string of these Python files, with :data:`VALUE` where values go."""
    for file in files:
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield one_line(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [
                    str(part.value) if isinstance(part, ast.Constant) else VALUE
                    for part in node.values
                ]
                yield one_line("".join(parts))


def one_line(text: str) -> str:
    """``text`` with single spaces."""
    return re.sub(r"\s+", " ", text)


def pattern_of(message: str) -> re.Pattern[str]:
    """What a text must have in it to be ``message``: the same words, in this order."""
    return re.compile(".*".join(map(re.escape, message.split(VALUE))))
