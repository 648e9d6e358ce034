# SPDX-License-Identifier: Apache-2.0
"""The message of an error is made in a bounded time.

Why: before vLLM sends a message it looks for file paths in it, with a pattern whose
time grows faster than the square of a path's length. A client whose request holds one
in a place that messages repeat (``"model": "/a/a/a..."``) stops the server for all
others: 5 s for 8 kB, more than ten minutes for 40 kB.
How: wraps ``sanitize_message`` where it is used; words of more than 200 characters are
cut before, and messages of more than 12,000.
Affects: all models, and no other messages.
Can go: when vLLM bounds what it searches.
"""

import re
from typing import Any

from vllm_lladav.patches.wrapping import wrap

LONGEST_WORD = 200
LONGEST_MESSAGE = 12_000
"""What vLLM writes of the ten errors that it reports fits in."""
_LONG_WORD = re.compile(rf"[\w\-./]{{{LONGEST_WORD},}}")


def apply() -> None:
    from vllm.entrypoints.serve.exception_handling import error_response
    from vllm.entrypoints.serve.exception_handling.handlers import http, validation

    for module in (error_response, http, validation):

        @wrap(module, "sanitize_message")
        def sanitize_short(sanitize: Any, message: str) -> Any:
            def cut(word: re.Match[str]) -> str:
                return f"{word[0][:LONGEST_WORD]}..."

            return sanitize(_LONG_WORD.sub(cut, message[:LONGEST_MESSAGE]))
