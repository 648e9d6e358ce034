# SPDX-License-Identifier: Apache-2.0
"""What no engine can take is found as the body is read, and named.

Why: Python's JSON reads more than a message to the engine can hold. An integer past 64
bits (``stream_interval``, say) or half of a surrogate pair (in an id) is an HTTP 500
when the request is encoded, or an error that names no field; deep nesting is a
``RecursionError``, an integer of thousands of digits no error of JSON, and two routes
take any JSON for an object. Of 150 kB of empty objects as ``input``, the validator of
``/v1/responses`` makes 12 million errors, for which a machine has no memory.
How: wraps ``starlette.requests.Request.json``, by which every route reads its body;
what is wrong is an :class:`HTTPException` of status 400.
Affects: servers of our models, all their routes.
Can go: when vLLM refuses these by name.
"""

from typing import Any

from vllm_lladav.model.families import is_ours
from vllm_lladav.patches.wrapping import wrap


def apply() -> None:
    from starlette.exceptions import HTTPException
    from starlette.requests import Request

    from vllm_lladav.frontend.body import BodyError, read_body

    @wrap(Request, "json")
    async def read_json(read: Any, self: Any) -> Any:
        if hasattr(self, "_json") or not _asks_ours(self):
            return await read(self)
        try:
            self._json = read_body(await self.body())
        except BodyError as error:
            raise HTTPException(400, str(error)) from None
        return self._json


def _asks_ours(request: Any) -> bool:
    app = request.scope.get("app")
    engine = getattr(getattr(app, "state", None), "engine_client", None)
    return engine is not None and is_ours(engine.model_config)
