# SPDX-License-Identifier: Apache-2.0
"""A streamed chat completion shows its canvas, if it asks for it.

Why: vLLM hands out what became the answer, in order, and nothing of what a step did;
an output without tokens would count as one with a token in its statistics, and two that
meet in a queue lose the fields of the first.
How: wraps ``OutputProcessor.process_outputs``, which is given the outputs without
frames (``live/channels.py``), and ``OpenAIServingChat._create_chat_completion``, whose
stream then has events between its chunks. Nothing is looked at while nobody watches.
Affects: our models only.
Can go: when vLLM hands a plugin's data of a step to its own endpoint.
"""

from inspect import isasyncgen
from typing import Any

from vllm_lladav.model.families import is_ours
from vllm_lladav.patches.wrapping import wrap


def apply() -> None:
    from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
    from vllm.v1.engine.output_processor import OutputProcessor

    from vllm_lladav.live.asking import NAME, ChannelNumber, is_asked
    from vllm_lladav.live.channels import Channel, take_shown
    from vllm_lladav.live.events import CanvasEvents
    from vllm_lladav.live.streaming import with_events

    @wrap(OutputProcessor, "process_outputs")
    def process_without_frames(
        process: Any, self: Any, engine_core_outputs: Any, *args: Any, **kwargs: Any
    ) -> Any:
        return process(self, take_shown(engine_core_outputs), *args, **kwargs)

    @wrap(OpenAIServingChat, "_create_chat_completion")
    async def complete_in_sight(
        create: Any, self: Any, request: Any, raw_request: Any = None
    ) -> Any:
        is_chat = type(self) is OpenAIServingChat and is_ours(self.model_config)
        asked = is_chat and is_asked(request.vllm_xargs)
        if not asked or not request.stream or (request.n or 1) > 1:
            return await create(self, request, raw_request)
        channel = Channel()
        number = ChannelNumber(channel.number)
        request.vllm_xargs = {**request.vllm_xargs, NAME: number}
        chunks: Any = None
        try:
            events = CanvasEvents(self.model_config, self.renderer.tokenizer)
            chunks = await create(self, request, raw_request)
        finally:
            is_refused = not isasyncgen(chunks)
            if is_refused:
                channel.close()
        if is_refused:
            return chunks
        return with_events(
            chunks,
            channel,
            events,
            raw_request.state.request_metadata,
            self.models.model_name(),
        )
