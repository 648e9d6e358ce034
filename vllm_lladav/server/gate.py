# SPDX-License-Identifier: Apache-2.0
"""The gate of the HTTP server: an ASGI middleware around all of vLLM's routes.

``patches/engine_arguments.py`` adds it to vLLM's ``--middleware``. It leaves servers of
other models alone.
"""

import asyncio
import time
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import torch
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from vllm import envs
from vllm.entrypoints.serve.exception_handling.error_response import (
    create_error_response,
)
from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

from vllm_lladav.model.families import is_ours
from vllm_lladav.options.reading import server_of
from vllm_lladav.page.serving import is_page, serve_page
from vllm_lladav.server.body import bounded
from vllm_lladav.server.draining import ShuttingDownError
from vllm_lladav.server.outcomes import (
    GENERATING,
    Answer,
    count_ended,
    count_received,
    show_counters,
    with_retry_after,
)
from vllm_lladav.server.pulse import feel_pulse
from vllm_lladav.server.traffic import Traffic, num_slots, traffic_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

HEALTH = frozenset({"/health", "/ping"})
OPEN = HEALTH | {"/metrics", "/version"}
"""Paths that need no key: monitors and load balancers have none."""


class Gate:
    """
    - With ``--api-key`` every path but :data:`OPEN` needs the key; vLLM asks for it
      under ``/v1`` and some more.
    - With ``--live-canvas on`` there is a page, whose files need no key.
    - ``/health`` is a 503 while the server ends and while the engine does not get on.
    - While the server ends, requests to generate are a 503.
    - Bodies are read up to ``--max-body-mib``.
    - Every request to generate is counted, and what became of it.
    """

    def __init__(self, app: "ASGIApp") -> None:
        self._app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        state = scope["app"].state
        engine = state.engine_client
        if engine is None or not is_ours(engine.model_config):
            await self._app(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(engine, scope, receive, send)
        elif scope["type"] != "http":
            await self._app(scope, receive, send)
        elif is_page(_path(scope)) and _has_page(engine):
            await serve_page(scope, receive, send)
        elif not _is_allowed(state.args, scope):
            await _send_error(HTTPStatus.UNAUTHORIZED, "Unauthorized", scope, send)
        else:
            await self._handle(engine, scope, receive, send)

    async def _live(
        self, engine: Any, scope: "Scope", receive: "Receive", send: "Send"
    ) -> None:
        """From the start of the server to its end."""
        show_counters(_model_name(engine))
        # For pictures. More threads would be in the way of the engine's, which wait for
        # one another.
        torch.set_num_threads(1)
        overdue_s = server_of(engine.vllm_config).step_overdue_seconds
        pulse = asyncio.create_task(feel_pulse(engine, overdue_s))
        try:
            await self._app(scope, receive, send)
        finally:
            pulse.cancel()
            with suppress(asyncio.CancelledError):
                await pulse

    async def _handle(
        self, engine: Any, scope: "Scope", receive: "Receive", send: "Send"
    ) -> None:
        traffic = traffic_of(engine)
        path = _path(scope)
        most = server_of(engine.vllm_config).max_body_mib << 20
        receive = bounded(scope, receive, most)
        if path in HEALTH and (reason := _sickness(traffic)):
            await _send_error(HTTPStatus.SERVICE_UNAVAILABLE, reason, scope, send)
        elif path in GENERATING and scope["method"] == "POST":
            await self._count(engine, traffic, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _count(
        self,
        engine: Any,
        traffic: Traffic,
        scope: "Scope",
        receive: "Receive",
        send: "Send",
    ) -> None:
        name = _model_name(engine)
        count_received(name)
        if traffic.is_draining:
            count_ended(name, "refused")
            error = ShuttingDownError()
            await _send_error(error.http_status, error.message, scope, send)
            return
        answer = Answer(receive, send)
        traffic.in_flight += 1
        try:
            await self._app(scope, answer.receive, answer.send)
        finally:
            outcome = answer.outcome(traffic.is_draining)
            count_ended(name, outcome)
            if outcome == "finished":
                is_full = traffic.in_flight >= num_slots(engine.vllm_config)
                traffic.pace.note_answer(time.monotonic(), is_full)
            traffic.in_flight -= 1


def _is_allowed(args: Any, scope: "Scope") -> bool:
    tokens = [key for key in (args.api_key or [envs.VLLM_API_KEY]) if key]
    if not tokens or scope["method"] == "OPTIONS" or _path(scope) in OPEN:
        return True
    keys = AuthenticationMiddleware(scope["app"], tokens)
    return keys.verify_token(Headers(scope=scope))


def _has_page(engine: Any) -> bool:
    return server_of(engine.vllm_config).live_canvas == "on"


def _path(scope: "Scope") -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def _sickness(traffic: Traffic) -> str | None:
    if traffic.is_draining:
        return "The server is shutting down."
    if traffic.is_overdue:
        return "A step of the engine is overdue (--step-overdue-seconds)."
    return None


def _model_name(engine: Any) -> str:
    name = engine.model_config.served_model_name
    return str(name[0] if isinstance(name, list) else name)


async def _send_error(
    status: HTTPStatus, message: str, scope: "Scope", send: "Send"
) -> None:
    error = create_error_response(message, status.phrase, status)
    response = JSONResponse(error.model_dump(), status)
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        response.raw_headers = with_retry_after(response.raw_headers)

    async def nothing() -> Any:
        return {"type": "http.disconnect"}

    await response(scope, nothing, send)
