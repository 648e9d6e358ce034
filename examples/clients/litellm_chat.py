# SPDX-License-Identifier: Apache-2.0
"""LiteLLM: ``hosted_vllm/`` before the model's name means a vLLM server."""

from litellm import completion
from trials import BASE_URL, MODEL, PICTURE_URL, run

SERVER = {"model": f"hosted_vllm/{MODEL}", "api_base": BASE_URL, "api_key": "none"}
QUESTION = {"role": "user", "content": "Describe a picture."}
WITH_PICTURE = {
    "role": "user",
    "content": [
        {"type": "image_url", "image_url": {"url": PICTURE_URL}},
        {"type": "text", "text": "Describe the picture."},
    ],
}


def text() -> str:
    answer = completion(**SERVER, messages=[QUESTION], max_tokens=64)
    return answer.choices[0].message.content


def picture() -> str:
    answer = completion(**SERVER, messages=[WITH_PICTURE], max_tokens=64)
    return answer.choices[0].message.content


def streaming() -> list[str]:
    stream = completion(
        **SERVER,
        messages=[WITH_PICTURE],
        max_tokens=64,
        stream=True,
        extra_body={"vllm_xargs": {"block_length": 16}},
    )
    return [chunk.choices[0].delta.content or "" for chunk in stream]


def xargs() -> str:
    answer = completion(
        **SERVER,
        messages=[WITH_PICTURE],
        max_tokens=64,
        extra_body={"vllm_xargs": {"steps": 16}},
    )
    return answer.choices[0].message.content


def structured() -> str:
    answer = completion(
        **SERVER,
        messages=[WITH_PICTURE],
        max_tokens=64,
        response_format={"type": "json_object"},
    )
    return answer.choices[0].message.content


if __name__ == "__main__":
    run(
        text=text,
        picture=picture,
        streaming=streaming,
        xargs=xargs,
        structured=structured,
    )
