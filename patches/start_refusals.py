# SPDX-License-Identifier: Apache-2.0
"""``vllm serve`` ends with the reason where it refuses to start.

Why: what is refused is the last line of a traceback through vLLM's configuration, which
tells nothing about it.
How: wraps ``ServeSubcommand.cmd``; our own ``StartError`` becomes one line on standard
error and exit status 1.
Affects: nothing but these errors.
Can go: when vLLM does so with errors of its configuration.
"""

import sys
from typing import Any

from vllm_lladav.model.start_error import StartError
from vllm_lladav.patches.wrapping import wrap


def apply() -> None:
    from vllm.entrypoints.cli.serve import ServeSubcommand

    @wrap(ServeSubcommand, "cmd")
    def serve_or_say_why(serve: Any, args: Any) -> None:
        try:
            serve(args)
        except StartError as error:
            sys.exit(f"vllm serve: error: {error}")
