# SPDX-License-Identifier: Apache-2.0
"""openai for Python, responses."""

from openai import OpenAI
from trials import BASE_URL, MODEL, PICTURE_URL, run

client = OpenAI(base_url=BASE_URL, api_key="none")

WITH_PICTURE = {
    "role": "user",
    "content": [
        {"type": "input_image", "image_url": PICTURE_URL, "detail": "auto"},
        {"type": "input_text", "text": "Describe the picture."},
    ],
}


def text() -> str:
    response = client.responses.create(
        model=MODEL, input="Describe a picture.", max_output_tokens=64
    )
    return response.output_text


def picture() -> str:
    response = client.responses.create(
        model=MODEL, input=[WITH_PICTURE], max_output_tokens=64
    )
    return response.output_text


def streaming() -> list[str]:
    stream = client.responses.create(
        model=MODEL,
        input=[WITH_PICTURE],
        max_output_tokens=64,
        stream=True,
        extra_body={"vllm_xargs": {"block_length": 16}},
    )
    return [e.delta for e in stream if e.type == "response.output_text.delta"]


def xargs() -> str:
    response = client.responses.create(
        model=MODEL,
        input=[WITH_PICTURE],
        max_output_tokens=64,
        extra_body={"vllm_xargs": {"steps": 16}},
    )
    return response.output_text


def structured() -> str:
    schema = {"type": "object", "properties": {"shape": {"type": "string"}}}
    response = client.responses.create(
        model=MODEL,
        input=[WITH_PICTURE],
        max_output_tokens=64,
        text={"format": {"type": "json_schema", "name": "answer", "schema": schema}},
    )
    return response.output_text


if __name__ == "__main__":
    run(
        text=text,
        picture=picture,
        streaming=streaming,
        xargs=xargs,
        structured=structured,
    )
