# SPDX-License-Identifier: Apache-2.0
"""Serves the page. Its files are the same for everybody and need no key; what it asks
the server does."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

PATH = "/lladav"

FILES = Path(__file__).parent / "static"

HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' data: blob:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Nothing foreign is loaded, nothing runs but the files, and nobody frames them."""


class _Files(StaticFiles):
    async def get_response(self, path: str, scope: "Scope") -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


async def _to_folder(request: "Request") -> Response:
    # Relative, so that a proxy may serve it under another path.
    return RedirectResponse(f"{PATH.removeprefix('/')}/", headers=HEADERS)


_app = Starlette(
    routes=[
        Route(PATH, _to_folder),
        Mount(PATH, _Files(directory=FILES, html=True)),
    ]
)


def is_page(path: str) -> bool:
    """Whether a path of the server is the page's."""
    return path == PATH or path.startswith(f"{PATH}/")


async def serve_page(scope: "Scope", receive: "Receive", send: "Send") -> Any:
    """An ASGI app for the paths that :func:`is_page`."""
    await _app(scope, receive, send)
