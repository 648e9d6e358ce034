# SPDX-License-Identifier: Apache-2.0
"""openai for Python, chat completions."""

from openai import OpenAI
from trials import BASE_URL, MODEL, PICTURE_URL, run

client = OpenAI(base_url=BASE_URL, api_key="none")

QUESTION = {"role": "user", "content": "Describe a picture."}
WITH_PICTURE = {
    "role": "user",
    "content": [
        {"type": "image_url", "image_url": {"url": PICTURE_URL}},
        {"type": "text", "text": "Describe the picture."},
    ],
}


def text() -> str:
    completion = client.chat.completions.create(
        model=MODEL, messages=[QUESTION], max_tokens=64
    )
    return completion.choices[0].message.content


def picture() -> str:
    completion = client.chat.completions.create(
        model=MODEL, messages=[WITH_PICTURE], max_tokens=64
    )
    return completion.choices[0].message.content


def streaming() -> list[str]:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[WITH_PICTURE],
        max_tokens=64,
        stream=True,
        stream_options={"include_usage": True},
        # Every block is sent when it is finished.
        extra_body={"vllm_xargs": {"block_length": 16}},
    )
    # The last chunk has the usage and no choice.
    return [c.choices[0].delta.content or "" for c in stream if c.choices]


def xargs() -> str:
    completion = client.chat.completions.create(
        model=MODEL,
        messages=[WITH_PICTURE],
        max_tokens=64,
        extra_body={"vllm_xargs": {"steps": 16}},
    )
    return completion.choices[0].message.content


def structured() -> str:
    schema = {"type": "object", "properties": {"shape": {"type": "string"}}}
    completion = client.chat.completions.create(
        model=MODEL,
        messages=[WITH_PICTURE],
        max_tokens=64,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": schema},
        },
    )
    return completion.choices[0].message.content


if __name__ == "__main__":
    run(
        text=text,
        picture=picture,
        streaming=streaming,
        xargs=xargs,
        structured=structured,
    )
