# SPDX-License-Identifier: Apache-2.0
"""Events of a canvas among the chunks of a streamed chat completion."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from vllm_lladav.denoising.frame import Shown
from vllm_lladav.live.channels import Channel
from vllm_lladav.live.events import CanvasEvents

EVENT_KEY = "lladav"
"""Field of a chunk that has an event. Such a chunk has no choices."""

_END = object()


async def with_events(
    chunks: AsyncGenerator[str, None],
    channel: Channel,
    events: CanvasEvents,
    **fields: Any,
) -> AsyncGenerator[str, None]:
    """``chunks`` as vLLM writes them, each behind the events that precede it.

    Args:
        channel: of the request; closed at the end.
        fields: of the chunks that have an event: ``id``, ``model``.
    """

    async def forward() -> None:
        try:
            async for chunk in chunks:
                channel.put_nowait(chunk)
        finally:
            channel.put_nowait(_END)
            await chunks.aclose()

    created = int(time.time())
    forwarding = asyncio.create_task(forward())
    try:
        while (item := await channel.get()) is not _END:
            if not isinstance(item, Shown):
                yield item
                continue
            for event in events.of(item):
                chunk = {
                    "object": "chat.completion.chunk",
                    "created": created,
                    **fields,
                    "choices": [],
                    EVENT_KEY: event,
                }
                yield f"data: {json.dumps(chunk, allow_nan=False)}\n\n"
        await forwarding
    finally:
        channel.close()
        forwarding.cancel()
        with suppress(asyncio.CancelledError):
            await forwarding
