# SPDX-License-Identifier: Apache-2.0
"""A server that does not start says why in its last line.

Why: what is wrong with a checkpoint is found in a worker, and what is wrong with the
memory in the engine core. The server's own last words are "Engine core initialization
failed. See root cause above", hundreds of lines below it. What is refused before an
engine starts is the last line of a traceback that is of no use.
How: wraps ``ServeSubcommand.cmd``, which then ends with our message alone; and
``Worker.load_model`` and ``EngineCore._initialize_kv_caches``, which leave the error in
a file whose name the engine's processes inherit from ``CoreEngineProcManager``, and
``wait_for_engine_startup``, which adds it to vLLM's.
Affects: our models only; errors get longer, and stay of their type.
Can go: when vLLM's processes report the cause.
"""

import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vllm_lladav.model.families import is_ours
from vllm_lladav.model.start_error import StartError
from vllm_lladav.patches.wrapping import wrap

FILE = "LLADAV_START_ERROR"
"""Environment variable: where the first error is left."""


def apply() -> None:
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.v1.engine import utils
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.worker.gpu_worker import Worker

    @wrap(ServeSubcommand, "cmd")
    def serve_or_say_why(serve: Any, args: Any) -> None:
        try:
            serve(args)
        except StartError as error:
            sys.exit(f"vllm serve: error: {error}")

    @wrap(utils.CoreEngineProcManager, "__init__")
    def start_engine(init: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        # Another name for every engine: what became of others is not its cause.
        name = f"lladav-start-{secrets.token_hex(8)}"
        os.environ[FILE] = str(Path(tempfile.gettempdir()) / name)
        init(self, *args, **kwargs)

    @wrap(Worker, "load_model")
    def load_model(load: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        with _left_behind(self.vllm_config):
            load(self, *args, **kwargs)

    @wrap(EngineCore, "_initialize_kv_caches")
    def initialize_kv_caches(initialize: Any, self: Any, vllm_config: Any) -> Any:
        with _left_behind(vllm_config):
            return initialize(self, vllm_config)

    @wrap(utils, "wait_for_engine_startup")
    def wait_and_tell(wait: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return wait(*args, **kwargs)
        except RuntimeError as error:
            cause = _read_once()
            if cause is None:
                raise
            raise RuntimeError(f"{error}\nThe cause is: {cause}") from None


@contextmanager
def _left_behind(vllm_config: Any) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if is_ours(vllm_config.model_config) and FILE in os.environ:
            # The first one is the cause; the disk may be full.
            with suppress(OSError), open(os.environ[FILE], "x") as file:
                file.write(f"{type(error).__name__}: {error}")
        raise


def _read_once() -> str | None:
    path = Path(os.environ.get(FILE, ""))
    with suppress(OSError):
        text = path.read_text()
        path.unlink()
        return text
    return None
