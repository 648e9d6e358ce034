# SPDX-License-Identifier: Apache-2.0
"""LangChain, by langchain-openai."""

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel
from trials import BASE_URL, MODEL, PICTURE_URL, run

model = ChatOpenAI(model=MODEL, base_url=BASE_URL, api_key="none", max_tokens=64)

WITH_PICTURE = HumanMessage(
    content=[
        {"type": "image_url", "image_url": {"url": PICTURE_URL}},
        {"type": "text", "text": "Describe the picture."},
    ]
)


class Thing(BaseModel):
    color: str
    shape: str


def text() -> str:
    return model.invoke("Describe a picture.").text


def picture() -> str:
    return model.invoke([WITH_PICTURE]).text


def streaming() -> list[str]:
    in_blocks = model.bind(extra_body={"vllm_xargs": {"block_length": 16}})
    return [chunk.text for chunk in in_blocks.stream([WITH_PICTURE])]


def xargs() -> str:
    in_few_steps = ChatOpenAI(
        model=MODEL,
        base_url=BASE_URL,
        api_key="none",
        max_tokens=64,
        extra_body={"vllm_xargs": {"steps": 16}},
    )
    return in_few_steps.invoke([WITH_PICTURE]).text


def structured() -> object:
    return model.with_structured_output(Thing).invoke([WITH_PICTURE])


if __name__ == "__main__":
    run(
        text=text,
        picture=picture,
        streaming=streaming,
        xargs=xargs,
        structured=structured,
    )
