# SPDX-License-Identifier: Apache-2.0
"""openai for Python, asynchronous: several requests at once share the steps."""

import asyncio

from openai import AsyncOpenAI
from trials import BASE_URL, MODEL, PICTURE_URL, run

WITH_PICTURE = {
    "role": "user",
    "content": [
        {"type": "image_url", "image_url": {"url": PICTURE_URL}},
        {"type": "text", "text": "Describe the picture."},
    ],
}


async def ask(client: AsyncOpenAI, **fields: object) -> str:
    completion = await client.chat.completions.create(
        model=MODEL, messages=[WITH_PICTURE], max_tokens=64, **fields
    )
    return completion.choices[0].message.content


async def ask_several() -> str:
    async with AsyncOpenAI(base_url=BASE_URL, api_key="none") as client:
        answers = await asyncio.gather(ask(client), ask(client))
    # Greedy answers do not depend on the batch.
    (answer,) = set(answers)
    return answer


async def read_stream() -> list[str]:
    async with AsyncOpenAI(base_url=BASE_URL, api_key="none") as client:
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[WITH_PICTURE],
            max_tokens=64,
            stream=True,
            extra_body={"vllm_xargs": {"block_length": 16}},
        )
        return [chunk.choices[0].delta.content or "" async for chunk in stream]


async def ask_in_few_steps() -> str:
    async with AsyncOpenAI(base_url=BASE_URL, api_key="none") as client:
        return await ask(client, extra_body={"vllm_xargs": {"steps": 16}})


if __name__ == "__main__":
    run(
        picture=lambda: asyncio.run(ask_several()),
        streaming=lambda: asyncio.run(read_stream()),
        xargs=lambda: asyncio.run(ask_in_few_steps()),
    )
