# SPDX-License-Identifier: Apache-2.0
"""Events of a canvas among the chunks of a streamed chat completion."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import suppress
from typing import Any

from vllm_lladav.denoising.frame import Shown
from vllm_lladav.live.channels import Channel
from vllm_lladav.live.events import CanvasEvents, Event

EVENT_KEY = "lladav"
"""Field of a chunk that has an event. Such a chunk has no choices."""

_DONE = "data: [DONE]\n\n"
_END = object()


async def with_events(
    chunks: AsyncGenerator[str, None],
    channel: Channel,
    events: CanvasEvents,
    metadata: Any,
    model: str,
) -> AsyncGenerator[str, None]:
    """``chunks`` as vLLM writes them, each behind the events that precede it.

    Args:
        channel: of the request; closed at the end.
        metadata: vLLM's ``RequestResponseMetadata`` of the response, which has the
            usage once the answer is complete.
        model: that answers.
    """

    async def forward() -> None:
        try:
            async for chunk in chunks:
                channel.put_nowait(chunk)
        finally:
            channel.put_nowait(_END)
            await chunks.aclose()

    fields = {
        "id": metadata.request_id,
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": model,
        "choices": [],
    }
    forwarding = asyncio.create_task(forward())
    try:
        while (item := await channel.get()) is not _END:
            told: Iterable[Event] = ()
            if isinstance(item, Shown):
                told = events.of(item)
            elif item == _DONE and metadata.final_usage_info is not None:
                told = [events.end(metadata.final_usage_info.completion_tokens)]
            for event in told:
                chunk = {**fields, EVENT_KEY: event}
                yield f"data: {json.dumps(chunk, allow_nan=False)}\n\n"
            if not isinstance(item, Shown):
                yield item
        await forwarding
    finally:
        channel.close()
        forwarding.cancel()
        with suppress(asyncio.CancelledError):
            await forwarding
