# SPDX-License-Identifier: Apache-2.0
"""What clients send: golden cases and small requests, as OpenAI parameters."""

import base64
import json
from pathlib import Path
from typing import Any

import requests
from openai import OpenAI
from openai.types import Completion
from openai.types.chat import ChatCompletion

from tests.golden.cases import GoldenCase, load_cases, pruning_args, stop_args

MODEL = "lladav"

Json = dict[str, Any]


def is_served_exactly(case: GoldenCase) -> bool:
    """Whether a plain request to the plain checkpoint must give the case's tokens."""
    return not (
        case.prune
        or case.dllm_cache
        or case.generate.cfg_scale
        or case.config_overrides
        or case.head_gains
    )


ENDLESS: Json = {
    "messages": [{"role": "user", "content": "w7 " * 300}],
    "vllm_xargs": {"gen_length": 1024, "block_length": 8, "steps": 1024},
    "max_tokens": 1024,
    "ignore_eos": True,
}
"""Fields of a request that runs for much longer than its client waits, also where the
machine is fast and the client is held up: minutes on the small checkpoint."""

EXACT_CASES = [name for name, case in load_cases().items() if is_served_exactly(case)]
TEXT_CASES = [name for name in EXACT_CASES if not load_cases()[name].images]


def openai_client(url: str) -> OpenAI:
    """A client that does not hide errors by trying again."""
    return OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=120)


def data_url(image: bytes, mime_type: str = "image/png") -> str:
    return f"data:{mime_type};base64,{base64.b64encode(image).decode()}"


def user_message(text: str, *images: Path | bytes) -> Json:
    """A user turn in which the images stand before the text."""
    content: list[Json] = []
    for image in images:
        data = image.read_bytes() if isinstance(image, Path) else image
        content.append({"type": "image_url", "image_url": {"url": data_url(data)}})
    return {"role": "user", "content": [*content, {"type": "text", "text": text}]}


def denoising_args(case: GoldenCase) -> Json:
    """``vllm_xargs`` of a case."""
    args = case.generate
    xargs: Json = {
        "gen_length": args.gen_length,
        "block_length": args.block_length,
        "steps": args.steps,
        **stop_args(case),
        **pruning_args(case),
    }
    if args.generation_suffix is not None:
        xargs["generation_suffix"] = args.generation_suffix
    return xargs


def sampling_fields(case: GoldenCase) -> Json:
    """Everything of a case but its prompt, as keywords of the ``openai`` package.

    Special tokens are kept in the text, as in the recorded ``output_text``.
    """
    fields: Json = {
        "model": MODEL,
        "max_tokens": case.generate.gen_length,
        "temperature": 0,
        "extra_body": {
            "vllm_xargs": denoising_args(case),
            "ignore_eos": True,
            "return_token_ids": True,
            "skip_special_tokens": False,
        },
    }
    if case.generate.stopping_criteria:
        fields["stop"] = list(case.generate.stopping_criteria)
    if case.image_mode:
        fields["extra_body"]["mm_processor_kwargs"] = {"image_mode": case.image_mode}
    return fields


def chat_fields(case: GoldenCase) -> Json:
    """A case as keywords of ``client.chat.completions.create``."""
    text, *further = case.messages
    assert not further, "the cases have one turn"
    return {
        **sampling_fields(case),
        "messages": [user_message(text, *case.image_paths)],
    }


def chat(client: OpenAI, case: GoldenCase) -> ChatCompletion:
    return client.chat.completions.create(**chat_fields(case))


def complete(client: OpenAI, case: GoldenCase, prompt: str | list[int]) -> Completion:
    return client.completions.create(prompt=prompt, **sampling_fields(case))


def small_chat(**fields: Any) -> Json:
    """Raw JSON of a valid request of one step, with ``fields`` added or replaced."""
    body: Json = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "w1 w2"}],
        "temperature": 0,
        "vllm_xargs": {"gen_length": 4, "steps": 1},
    }
    return {**body, **fields}


def post(url: str, path: str, body: Json) -> requests.Response:
    """Send JSON as Python writes it, NaN included, to an endpoint below ``/v1``."""
    return requests.post(
        f"{url}/v1/{path}",
        data=json.dumps(body),
        headers={"Content-Type": "application/json"},
        timeout=60,
    )


def greedy_tokens(url: str) -> list[int]:
    """Of the answer to a request that is always the same."""
    body = small_chat(
        max_tokens=32, ignore_eos=True, return_token_ids=True, vllm_xargs={}
    )
    response = post(url, "chat/completions", body)
    token_ids: list[int] = response.json()["choices"][0]["token_ids"]
    return token_ids


def assert_refused(response: requests.Response, *mentions: str) -> None:
    """The response is an HTTP 400 whose message has all of ``mentions``."""
    assert response.status_code == 400, response.text[:500]
    message = response.json()["error"]["message"]
    for text in mentions:
        assert text in message
