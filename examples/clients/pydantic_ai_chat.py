# SPDX-License-Identifier: Apache-2.0
"""Pydantic AI."""

import asyncio

from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from trials import BASE_URL, MODEL, PICTURE, run

provider = OpenAIProvider(base_url=BASE_URL, api_key="none")
agent = Agent(
    OpenAIChatModel(MODEL, provider=provider), model_settings={"max_tokens": 64}
)

WITH_PICTURE = [
    BinaryContent(PICTURE.read_bytes(), media_type="image/png"),
    "Describe the picture.",
]


class Thing(BaseModel):
    color: str
    shape: str


def text() -> str:
    return agent.run_sync("Describe a picture.").output


def picture() -> str:
    return agent.run_sync(WITH_PICTURE).output


async def read_stream() -> list[str]:
    settings = {"extra_body": {"vllm_xargs": {"block_length": 16}}}
    async with agent.run_stream(WITH_PICTURE, model_settings=settings) as result:
        return [piece async for piece in result.stream_text(delta=True)]


def xargs() -> str:
    settings = {"extra_body": {"vllm_xargs": {"steps": 16}}}
    return agent.run_sync(WITH_PICTURE, model_settings=settings).output


def structured() -> Thing:
    return agent.run_sync(WITH_PICTURE, output_type=Thing).output


if __name__ == "__main__":
    run(
        text=text,
        picture=picture,
        streaming=lambda: asyncio.run(read_stream()),
        xargs=xargs,
        structured=structured,
    )
