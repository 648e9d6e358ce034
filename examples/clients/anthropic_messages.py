# SPDX-License-Identifier: Apache-2.0
"""anthropic for Python: vLLM speaks that API, too."""

import base64

from anthropic import Anthropic
from trials import BASE_URL, MODEL, PICTURE, run

# Its addresses have the /v1 themselves.
client = Anthropic(base_url=BASE_URL.removesuffix("/v1"), api_key="none")

QUESTION = {"role": "user", "content": "Describe a picture."}
SOURCE = {
    "type": "base64",
    "media_type": "image/png",
    "data": base64.b64encode(PICTURE.read_bytes()).decode(),
}
WITH_PICTURE = {
    "role": "user",
    "content": [
        {"type": "image", "source": SOURCE},
        {"type": "text", "text": "Describe the picture."},
    ],
}


def text() -> str:
    message = client.messages.create(model=MODEL, messages=[QUESTION], max_tokens=64)
    return message.content[0].text


def picture() -> str:
    message = client.messages.create(
        model=MODEL, messages=[WITH_PICTURE], max_tokens=64
    )
    return message.content[0].text


def streaming() -> list[str]:
    with client.messages.stream(
        model=MODEL,
        messages=[WITH_PICTURE],
        max_tokens=64,
        extra_body={"vllm_xargs": {"block_length": 16}},
    ) as stream:
        return list(stream.text_stream)


def xargs() -> str:
    message = client.messages.create(
        model=MODEL,
        messages=[WITH_PICTURE],
        max_tokens=64,
        extra_body={"vllm_xargs": {"steps": 16}},
    )
    return message.content[0].text


if __name__ == "__main__":
    run(text=text, picture=picture, streaming=streaming, xargs=xargs)
