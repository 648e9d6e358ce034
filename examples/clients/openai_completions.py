# SPDX-License-Identifier: Apache-2.0
"""openai for Python, completions: the prompt is taken as it is, so it has the template.

Text only: a completion has no place for a picture.
"""

from openai import OpenAI
from trials import BASE_URL, MODEL, run

client = OpenAI(base_url=BASE_URL, api_key="none")

PROMPT = (
    "<|start_header_id|>user<|end_header_id|>\n\nDescribe a picture.<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)


def text() -> str:
    # Without max_tokens it is 16, OpenAI's own default here.
    completion = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=32)
    return completion.choices[0].text


def streaming() -> list[str]:
    stream = client.completions.create(
        model=MODEL,
        prompt=PROMPT,
        max_tokens=64,
        stream=True,
        # Without a picture lladav-tiny would end at once.
        extra_body={"vllm_xargs": {"block_length": 16}, "ignore_eos": True},
    )
    return [chunk.choices[0].text for chunk in stream]


def xargs() -> str:
    completion = client.completions.create(
        model=MODEL,
        prompt=PROMPT,
        max_tokens=64,
        extra_body={"vllm_xargs": {"steps": 16}, "ignore_eos": True},
    )
    return completion.choices[0].text


if __name__ == "__main__":
    run(text=text, streaming=streaming, xargs=xargs)
