# SPDX-License-Identifier: Apache-2.0
"""Instructor: answers as objects of a pydantic model."""

import instructor
from openai import OpenAI
from pydantic import BaseModel
from trials import BASE_URL, MODEL, PICTURE_URL, run

WITH_PICTURE = {
    "role": "user",
    "content": [
        {"type": "image_url", "image_url": {"url": PICTURE_URL}},
        {"type": "text", "text": "Describe the picture."},
    ],
}


class Thing(BaseModel):
    color: str
    shape: str


def ask(mode: instructor.Mode) -> Thing:
    openai = OpenAI(base_url=BASE_URL, api_key="none")
    client = instructor.from_openai(openai, mode=mode)
    return client.chat.completions.create(
        model=MODEL,
        messages=[WITH_PICTURE],
        max_tokens=64,
        max_retries=0,
        response_model=Thing,
    )


if __name__ == "__main__":
    run(structured=lambda: ask(instructor.Mode.TOOLS))
