# SPDX-License-Identifier: Apache-2.0
"""Bad input is refused with HTTP 400 and the name of what is wrong."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import OpenAI

from tests.golden.cases import GoldenCase
from tests.server.bad_requests import BAD_REQUESTS, BadRequest
from tests.server.client import MODEL, Json, assert_refused, chat, post
from tests.server.process import ServerProcess

both_ways = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


@both_ways
@pytest.mark.parametrize("bad", BAD_REQUESTS, ids=lambda bad: bad.name)
def test_chat(server: ServerProcess, bad: BadRequest, stream: bool) -> None:
    """Also when streaming: the error is the response, not an event within it."""
    body = {**bad.body, "stream": stream}
    assert_refused(post(server.url, "chat/completions", body), *bad.mentions)
    assert server.is_healthy()


@both_ways
@pytest.mark.parametrize(
    ("fields", "mentions"),
    [
        ({"prompt": [5, 126_349]}, ("prompt token ids", "126349")),
        ({"prompt": [5, 126_463]}, ("prompt token ids", "126349")),
        ({"prompt": [5, 10**9]}, ("1000000000",)),
        ({"prompt": [5, 2**70]}, (str(2**70),)),
        ({"prompt": [5, -200]}, ("prompt", "-200")),
        ({"prompt": [[5], [126_349]]}, ("prompt token ids", "126349")),
        ({"prompt": [5] * 9000}, ("prompt", "8192", "9000")),
        ({"prompt": ""}, ("prompt",)),
        ({"prompt": []}, ("prompt",)),
        ({"prompt": "w1 <image> w2"}, ("prompt", "<image>", "no image")),
        ({"prompt": "w1", "logprobs": -1}, ("logprobs",)),
        ({"prompt": "w1", "logprobs": 21}, ("logprobs", "20")),
        ({"prompt": "w1", "suffix": "w2"}, ("suffix",)),
        ({"prompt": "w1", "vllm_xargs": {"steps": 0}}, ("steps",)),
        ({"prompt_embeds": "AAAA"}, ("prompt_embeds",)),
    ],
    ids=[
        "id_past_tokenizer",
        "id_past_tokenizer_in_vocabulary",
        "id_huge",
        "id_past_64_bits",
        "id_negative",
        "second_prompt_bad",
        "too_long",
        "empty",
        "empty_list",
        "image_mark",
        "all_logprobs",
        "many_logprobs",
        "suffix",
        "steps_zero",
        "prompt_embeds",
    ],
)
def test_completion(
    server: ServerProcess,
    fields: Json,
    mentions: tuple[str, ...],
    stream: bool,
) -> None:
    body = {"model": MODEL, "max_tokens": 4, "temperature": 0, "stream": stream}
    assert_refused(post(server.url, "completions", {**body, **fields}), *mentions)
    assert server.is_healthy()


def test_bad_requests_leave_others_alone(
    client: OpenAI, server: ServerProcess, golden_cases: dict[str, GoldenCase]
) -> None:
    """A request that runs while all the bad ones come in gets its recorded answer."""
    case = golden_cases["text_32_32_32"]
    with ThreadPoolExecutor(4) as pool:
        good = [pool.submit(chat, client, case)]
        bad = [
            pool.submit(post, server.url, "chat/completions", bad.body)
            for bad in BAD_REQUESTS
        ]
        good.append(pool.submit(chat, client, case))
    assert {future.result().status_code for future in bad} == {400}
    for answer in good:
        token_ids = answer.result().choices[0].to_dict()["token_ids"]
        assert token_ids == list(case.output_ids)
