# SPDX-License-Identifier: Apache-2.0
"""Which addresses are public, and that redirects do not lead elsewhere."""

import asyncio

import aiohttp
import pytest
from aiohttp import web

from vllm_lladav.frontend.public_connection import PublicConnection, is_public


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fd00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "2002:7f00:1::",
        "64:ff9b::a00:1",
        "2130706433",
        "localhost",
    ],
)
def test_not_public(address: str):
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public(address: str):
    assert is_public(address)


def test_redirects_are_checked():
    """A trusted host may be anywhere; where it redirects to may not."""

    async def run() -> None:
        app = web.Application()

        async def here(request: web.Request) -> web.Response:
            return web.Response(body=b"here")

        async def away(request: web.Request) -> web.Response:
            raise web.HTTPFound(f"http://127.0.0.1:{request.url.port}/here")

        app.router.add_get("/here", here)
        app.router.add_get("/away", away)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        url = f"http://localhost:{runner.addresses[0][1]}"
        connection = PublicConnection(["localhost"])
        try:
            async with await connection.get_async_response(f"{url}/here") as found:
                assert await found.read() == b"here"
            with pytest.raises(aiohttp.ClientConnectorError):
                async with await connection.get_async_response(f"{url}/away"):
                    pass
        finally:
            await (await connection.get_async_client()).close()
            await runner.cleanup()

    asyncio.run(run())
