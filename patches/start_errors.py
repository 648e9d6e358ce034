# SPDX-License-Identifier: Apache-2.0
"""A server that does not start says why in its last line.

Why: what is wrong with a checkpoint is found in a worker, and what is wrong with the
memory in the engine core. The server's own last words are "Engine core initialization
failed. See root cause above", hundreds of lines below it.
How: wraps ``EngineCore._initialize_kv_caches`` and (``worker_errors.py``)
``Worker.load_model``, which leave the error in a file whose name the engine's processes
inherit from ``CoreEngineProcManager``, and ``wait_for_engine_startup``, which adds it
to vLLM's. The latter also says every few seconds that it waits.
Affects: our models only, but for the words about waiting; errors get longer, and stay
of their type.
Can go: when vLLM's processes report the cause.
"""

import os
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vllm.logger import init_logger

from vllm_lladav.model.families import is_ours
from vllm_lladav.patches.wrapping import wrap

logger = init_logger("vllm_lladav.start")

FILE = "LLADAV_START_ERROR"
"""Environment variable: where the first error is left."""

SAY_S = 5.0
"""Between two words about a start that is under way."""


def apply() -> None:
    from vllm.v1.engine import utils
    from vllm.v1.engine.core import EngineCore

    @wrap(utils.CoreEngineProcManager, "__init__")
    def start_engine(init: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        # Another name for every engine: what became of others is not its cause.
        name = f"lladav-start-{secrets.token_hex(8)}"
        os.environ[FILE] = str(Path(tempfile.gettempdir()) / name)
        init(self, *args, **kwargs)

    @wrap(EngineCore, "_initialize_kv_caches")
    def initialize_kv_caches(initialize: Any, self: Any, vllm_config: Any) -> Any:
        with left_behind(vllm_config):
            return initialize(self, vllm_config)

    @wrap(utils, "wait_for_engine_startup")
    def wait_and_tell(wait: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            with said_meanwhile():
                return wait(*args, **kwargs)
        except RuntimeError as error:
            cause = _read_once()
            if cause is None:
                raise
            raise RuntimeError(f"{error}\nThe cause is: {cause}") from None


@contextmanager
def said_meanwhile() -> Iterator[None]:
    """vLLM's processes are silent while they import what they need."""
    is_over = threading.Event()
    started = time.monotonic()

    def say() -> None:
        while not is_over.wait(SAY_S):
            logger.info(
                "Waiting for the engine, whose processes load their libraries and then "
                "the model: %d s so far.",
                time.monotonic() - started,
            )

    threading.Thread(target=say, name="start", daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


@contextmanager
def left_behind(vllm_config: Any) -> Iterator[None]:
    """An error in the block is left where :func:`apply` finds it."""
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
