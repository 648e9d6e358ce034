# SPDX-License-Identifier: Apache-2.0
"""A server that ends answers every request, and says so if its engine died.

Why: on SIGTERM vLLM stops the engine first and then waits for the connections, without
end: clients that wait for an answer get neither it nor an error. After the death of the
engine the server ends with exit status 0, and no supervisor starts it again.
How: wraps ``AsyncLLM.shutdown`` (running requests finish or are failed before the
engine is stopped), ``AsyncLLM.check_admission`` (no request gets to the engine any
more), and ``build_and_serve`` of the API server (an end for waiting connections, and
the exit status). Where there are several API servers: wraps what their parent stops
them and the engines with, so that they have the time to do so.
Affects: servers of our models only.
Can go: when vLLM's API server fails its requests before it waits for connections.
"""

import asyncio
import logging
import time
from typing import Any

from vllm_lladav.model.families import is_ours
from vllm_lladav.patches.wrapping import wrap


def apply() -> None:
    from vllm.entrypoints.cli import serve as serve_command
    from vllm.entrypoints.launchers.api_server import entry
    from vllm.logger import init_logger
    from vllm.v1.engine import async_llm
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.utils import CoreEngineProcManager
    from vllm.v1.utils import APIServerProcessManager

    from vllm_lladav.server.draining import (
        CONNECTIONS_S,
        ENGINE_EXIT_S,
        LAST_WORDS_S,
        ShuttingDownError,
        drain,
    )
    from vllm_lladav.server.traffic import traffic_of

    logger = init_logger("vllm_lladav.server")

    @wrap(AsyncLLM, "shutdown")
    def answer_and_shut_down(
        shutdown: Any, self: Any, timeout: float | None = None
    ) -> None:
        # vLLM calls it a second time, from the event loop, when all is over.
        if timeout is not None and is_ours(self.model_config) and not _is_in_loop():
            started = time.monotonic()
            drain(self, timeout)
            left = timeout - (time.monotonic() - started)
            timeout = max(left, ENGINE_EXIT_S)
            # It is reported as the engine's death, although we end it.
            async_llm.logger.addFilter(_is_no_dead_engine)
        shutdown(self, timeout)

    @wrap(AsyncLLM, "check_admission")
    def check_not_draining(
        check: Any, self: Any, n: int = 1, request_id: str | None = None
    ) -> None:
        if is_ours(self.model_config) and traffic_of(self).is_draining:
            raise ShuttingDownError
        check(self, n, request_id)

    @wrap(entry, "build_and_serve")
    async def serve_to_the_end(
        serve: Any, engine_client: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if not is_ours(engine_client.model_config):
            return await serve(engine_client, *args, **kwargs)
        kwargs.setdefault("timeout_graceful_shutdown", CONNECTIONS_S)
        last_task = await serve(engine_client, *args, **kwargs)
        if engine_client.errored and not traffic_of(engine_client).is_draining:
            await last_task
            logger.error(
                "The engine died, see above; the server ends with exit status 1."
            )
            raise SystemExit(1)
        return last_task

    # What follows is for the parent of several API servers, which kills them when the
    # time is over. It is told of the model once.
    ours: list[Any] = []

    @wrap(serve_command, "launch_core_engines")
    def note_ours(launch: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        if is_ours(vllm_config.model_config):
            ours.append(vllm_config)
        return launch(vllm_config, *args, **kwargs)

    @wrap(APIServerProcessManager, "shutdown")
    def let_them_answer(shutdown: Any, self: Any, timeout: float | None = None) -> None:
        grace = LAST_WORDS_S + ENGINE_EXIT_S + CONNECTIONS_S if ours else 0
        shutdown(self, None if timeout is None else timeout + grace)

    @wrap(CoreEngineProcManager, "shutdown")
    def let_it_end(shutdown: Any, self: Any, timeout: float | None = None) -> None:
        if ours and timeout is not None:
            timeout = max(timeout, ENGINE_EXIT_S)
        shutdown(self, timeout)


def _is_no_dead_engine(record: logging.LogRecord) -> bool:
    from vllm.v1.engine.exceptions import EngineDeadError

    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, EngineDeadError)


def _is_in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
