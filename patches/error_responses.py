# SPDX-License-Identifier: Apache-2.0
"""Every refusal has the form of an error, and is one of the client's.

Why: vLLM registers its handler for FastAPI's ``HTTPException``, but a route that does
not exist, a method that it does not have and a body that cannot be read raise
Starlette's, whose answer is ``{"detail": ...}`` without ``error``. And a route that the
model does not support is an HTTP 501, which counts as a failure of the server.
How: wraps ``init_exception_handler``; the handlers of Starlette's exception and of
``NotImplementedError`` are replaced.
Affects: the first, all models; the second, servers of ours.
Can go: when vLLM registers its handler for Starlette's exception.
"""

from typing import Any

from vllm_lladav.model.families import is_ours
from vllm_lladav.patches.wrapping import wrap


def apply() -> None:
    from vllm.entrypoints.launchers import app as launcher

    @wrap(launcher, "init_exception_handler")
    def init_handlers(init: Any, app: Any) -> None:
        from starlette.exceptions import HTTPException
        from vllm.entrypoints.serve.exception_handling.handlers.exception import (
            exception_handler,
        )
        from vllm.entrypoints.serve.exception_handling.handlers.http import (
            http_exception_handler,
        )
        from vllm.exceptions import VLLMClientError

        init(app)
        app.exception_handler(HTTPException)(http_exception_handler)

        @app.exception_handler(NotImplementedError)
        async def refuse(request: Any, error: NotImplementedError) -> Any:
            ours = is_ours(request.app.state.engine_client.model_config)
            refusal = VLLMClientError(str(error)) if ours else error
            return await exception_handler(request, refusal)
