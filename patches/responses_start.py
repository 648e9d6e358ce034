# SPDX-License-Identifier: Apache-2.0
"""A streamed response begins with an event or is an error.

Why: the first event of ``/v1/responses`` repeats the request. Where it cannot be made
(``truncation: null``), the client already has its HTTP 200, and the connection breaks
off.
How: wraps ``OpenAIServingResponses.create_responses``: the stream is handed out once it
has its first event.
Affects: servers of our models.
Can go: when vLLM validates before it starts to stream.
"""

from collections.abc import AsyncGenerator
from inspect import isasyncgen
from typing import Any

from vllm_lladav.model.families import is_ours
from vllm_lladav.patches.wrapping import wrap


def apply() -> None:
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses

    @wrap(OpenAIServingResponses, "create_responses")
    async def begin_response(
        create: Any, self: Any, request: Any, raw_request: Any = None
    ) -> Any:
        created = await create(self, request, raw_request)
        if not is_ours(self.model_config) or not isasyncgen(created):
            return created
        return _with_first(await anext(created), created)


async def _with_first(first: Any, rest: Any) -> AsyncGenerator[Any, None]:
    try:
        yield first
        async for event in rest:
            yield event
    finally:
        await rest.aclose()
