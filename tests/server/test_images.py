# SPDX-License-Identifier: Apache-2.0
"""Images of every shape, broken ones, and prompts that do not fit them."""

import io
import struct
import zlib
from typing import Any

import pytest
import requests
from PIL import Image

from tests.golden.cases import DIRECTORY, load_visual_token_counts
from tests.server.client import Json, assert_refused, post, small_chat, user_message
from tests.server.process import ServerProcess

PNG = (DIRECTORY / "images" / "square200.png").read_bytes()

both_ways = pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])


def send(server: ServerProcess, message: Json, **fields: Any) -> requests.Response:
    body = small_chat(messages=[message], **fields)
    return post(server.url, "chat/completions", body)


def blank_png(width: int, height: int) -> bytes:
    png = io.BytesIO()
    Image.new("RGB", (width, height), (40, 90, 160)).save(png, "PNG")
    return png.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header tells of a large image."""
    png = blank_png(2, 2)
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


def num_prompt_tokens(server: ServerProcess, *images: bytes, **fields: Any) -> int:
    response = send(server, user_message("w5", *images), **fields)
    assert response.status_code == 200, response.text
    count: int = response.json()["usage"]["prompt_tokens"]
    return count


@pytest.mark.parametrize(
    ("width", "height", "visual_tokens"),
    [
        *(
            (row.width, row.height, row.tokens)
            for row in load_visual_token_counts()
            if (row.width, row.height) in [(1, 1), (1000, 3), (3, 1000), (5000, 200)]
        ),
        # So thin that no tiling leaves a pixel of it: the smallest one is taken, in
        # which it is one patch wide, with a newline after each of 27 rows.
        (1, 20_000, 729 + 27 * 2),
    ],
)
def test_extreme_sizes(
    server: ServerProcess, width: int, height: int, visual_tokens: int
) -> None:
    """Any picture is answered, with the visual tokens of the official tiling."""
    tiled = num_prompt_tokens(server, blank_png(width, height))
    # Padded to one tile of 729 tokens, whatever the size.
    padded = {"mm_processor_kwargs": {"image_mode": "pad_stacked"}}
    base = num_prompt_tokens(server, blank_png(8, 8), **padded)
    assert tiled - base == visual_tokens - 729


@both_ways
def test_padding_to_a_huge_square_is_refused(
    server: ServerProcess, stream: bool
) -> None:
    """Several images are padded to squares: a few bytes must not become gigabytes."""
    thin = blank_png(1, 20_000)
    response = send(server, user_message("w5", thin, thin), stream=stream)
    assert_refused(response, "image", "20000")


@both_ways
@pytest.mark.parametrize(
    "image",
    [
        b"no image at all",
        b"",
        PNG[: len(PNG) // 2],
        PNG[:200] + bytes(300) + PNG[500:],
        png_that_claims(60_000, 60_000),
    ],
    ids=["text", "empty", "truncated", "overwritten", "bomb"],
)
def test_broken_image(server: ServerProcess, image: bytes, stream: bool) -> None:
    assert_refused(send(server, user_message("w5", image), stream=stream), "mage")
    assert server.is_healthy()


@both_ways
@pytest.mark.parametrize(
    ("message", "fields", "mentions"),
    [
        (
            user_message("w5", PNG),
            {"mm_processor_kwargs": {"image_mode": "foo"}},
            ("image_mode", "foo", "pad_stacked"),
        ),
        (
            user_message("w5", PNG),
            {"mm_processor_kwargs": {"image_modes": "anyres"}},
            ("image_modes", "image_mode"),
        ),
        (
            {"role": "user", "content": "w1 <image> w2"},
            {},
            ("<image>", "no image"),
        ),
        (
            user_message("<image> w1 <image> w2", PNG),
            {},
            ("2 <image>", "1 image"),
        ),
        (
            user_message("<image> w1", PNG, PNG),
            {},
            ("1 <image>", "2 image"),
        ),
        (
            user_message("w5", *[PNG] * 7),
            {"mm_processor_kwargs": {"image_mode": "anyres"}},
            ("prompt", "8192", "images included"),
        ),
        (
            {**user_message("w5", PNG), "role": "system"},
            {},
            ("user messages only",),
        ),
        (
            {
                "role": "user",
                "content": [
                    {
                        "type": "input_audio",
                        "input_audio": {"data": "AAAA", "format": "wav"},
                    }
                ],
            },
            {},
            ("audio",),
        ),
    ],
    ids=[
        "unknown_mode",
        "unknown_option",
        "mark_without_image",
        "two_marks_one_image",
        "one_mark_two_images",
        "too_many_tokens",
        "image_of_the_system",
        "audio",
    ],
)
def test_images_that_do_not_fit(
    server: ServerProcess,
    message: Json,
    fields: Json,
    mentions: tuple[str, ...],
    stream: bool,
) -> None:
    assert_refused(send(server, message, stream=stream, **fields), *mentions)
    assert server.is_healthy()


@pytest.mark.parametrize(
    "bad",
    [
        {"vllm_xargs": {"gen_length": 4, "prune_rate": 7}},
        {"vllm_xargs": {"gen_length": 4, "cache": "none at all"}},
        {"logit_bias": {"5": 10}},
        {"presence_penalty": 0.5},
        {"response_format": {"type": "json_object"}},
        {"temperature": -1},
        {"stop": [""]},
        {"n": 0},
        {"max_tokens": 100_000, "vllm_xargs": {}},
        {"messages": "long"},
    ],
    ids=str,
)
def test_image_of_a_refused_request_is_not_lost(
    server: ServerProcess, bad: Json
) -> None:
    """The front end does not take it for sent: the next request with it is answered."""
    image = blank_png(40, 1 + zlib.crc32(str(bad).encode()) % 997)  # Nobody sent it.
    fields = dict(bad)
    is_long = fields.pop("messages", None) is not None
    refused = user_message("w5" + " w7" * 5000 * is_long, image)
    assert send(server, refused, **fields).status_code == 400
    assert send(server, user_message("w5", image)).status_code == 200


def test_new_image_twice_in_a_request(server: ServerProcess) -> None:
    image = blank_png(41, 43)  # Nobody sent it.
    for _ in range(2):
        response = send(server, user_message("w5", image, image))
        assert response.status_code == 200, response.text
