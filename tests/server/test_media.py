# SPDX-License-Identifier: Apache-2.0
"""What a client may send as an image, and what it may have the server fetch."""

import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests
from PIL import Image

from tests.golden.cases import DIRECTORY
from tests.server.client import (
    Json,
    assert_refused,
    data_url,
    post,
    small_chat,
    user_message,
)
from tests.server.process import ServerProcess

PNG = (DIRECTORY / "images" / "square200.png").read_bytes()


def send(server: ServerProcess, message: Json) -> requests.Response:
    return post(server.url, "chat/completions", small_chat(messages=[message]))


def bit_png(width: int, height: int) -> bytes:
    """Many pixels in few bytes."""
    png = io.BytesIO()
    Image.new("1", (width, height)).save(png, "PNG")
    return png.getvalue()


def test_a_large_image_is_refused(server: ServerProcess) -> None:
    response = send(server, user_message("w5", bit_png(8193, 8193)))
    assert_refused(response, "8193x8193", "67108864", "--max-image-pixels")


def test_many_pixels_are_refused(server: ServerProcess) -> None:
    """Counted over all messages of a request."""
    large = bit_png(8000, 8000)
    messages = [
        user_message("w5", large, large),
        {"role": "assistant", "content": "w6"},
        user_message("w5", large, large, large),
    ]
    response = post(server.url, "chat/completions", small_chat(messages=messages))
    assert_refused(response, "320000000", "268435456", "--max-request-image-pixels")


def test_more_images_than_the_context_holds(server: ServerProcess) -> None:
    """16384 tokens have room for 22 images of at least 729."""
    response = send(server, user_message("w5", *[PNG] * 23))
    assert_refused(response, "At most 22 image")


@pytest.fixture
def inside() -> Iterator[tuple[int, list[str]]]:
    """Port of a server that only this machine can reach, and what was asked of it."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            asked.append(self.path)
            self.send_response(404 if "missing" in self.path else 200)
            self.end_headers()
            self.wfile.write(b"secret" if "text" in self.path else PNG)

        def log_message(self, *args: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever)
    thread.start()
    yield listener.server_address[1], asked
    listener.shutdown()
    listener.server_close()
    thread.join()


def test_nothing_is_told_of_the_inside(
    server: ServerProcess, inside: tuple[int, list[str]]
) -> None:
    """Open, closed, not found, no image, not routed: the same answer, no connection."""
    port, asked = inside
    urls = [
        f"http://127.0.0.1:{port}/picture.png",
        f"http://127.0.0.1:{port}/text",
        f"http://127.0.0.1:{port}/missing",
        f"http://localhost:{port}/picture.png",
        f"http://[::ffff:127.0.0.1]:{port}/picture.png",
        f"http://2130706433:{port}/picture.png",
        f"http://0.0.0.0:{port}/picture.png",
        "http://127.0.0.1:9/picture.png",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/picture.png",
        "http://no-such-host.invalid/picture.png",
    ]

    def ask(url: str) -> requests.Response:
        image = {"type": "image_url", "image_url": {"url": url}}
        return send(server, {"role": "user", "content": [image]})

    with ThreadPoolExecutor(len(urls)) as pool:
        responses = list(pool.map(ask, urls))
    for response in responses:
        assert_refused(response, "image_url")
    assert len({response.text for response in responses}) == 1
    assert asked == []


def test_images_have_no_names(server: ServerProcess) -> None:
    """Neither is one accepted with its picture nor in its place."""
    image: Json = {"type": "image_url", "image_url": {"url": data_url(PNG)}}
    for part in ({**image, "uuid": "cat"}, {**image, "image_url": None, "uuid": "cat"}):
        response = send(server, {"role": "user", "content": [part]})
        assert_refused(response, "uuid", "--image-uuids")
