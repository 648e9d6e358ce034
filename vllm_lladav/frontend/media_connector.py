# SPDX-License-Identifier: Apache-2.0
"""vLLM's loader of media, for clients that are not trusted."""

import asyncio
from functools import lru_cache
from typing import Any

import vllm.envs as envs
from PIL import Image
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media import MediaConnector

from vllm_lladav.frontend.image_loading import BoundedImageIO, PixelBudget
from vllm_lladav.frontend.media_rules import TooManyPixels
from vllm_lladav.frontend.public_connection import PublicConnection

FETCH_TIMES = 6
"""A URL is given up after so many times ``VLLM_IMAGE_FETCH_TIMEOUT``, in seconds: 30 by
default, all of vLLM's attempts and waits together."""


class BoundedMediaConnector(MediaConnector):
    """Fetches images from public addresses and trusted hosts, and bounds their pixels.

    Args:
        budget: of the request.
        kwargs: of vLLM's connector. Hosts in ``allowed_media_domains`` are trusted.
    """

    def __init__(self, budget: PixelBudget, **kwargs: Any) -> None:
        trusted = tuple(kwargs.get("allowed_media_domains") or ())
        super().__init__(connection=_connection(trusted), **kwargs)
        self._budget = budget

    def fetch_image(
        self, image_url: str, *, image_mode: str | None = "RGB"
    ) -> Image.Image:
        return self.load_from_url(
            image_url,
            self._image_io(image_mode),
            fetch_timeout=envs.VLLM_IMAGE_FETCH_TIMEOUT,
        )

    async def fetch_image_async(
        self, image_url: str, *, image_mode: str | None = "RGB"
    ) -> Image.Image:
        """Raises ``ValueError``: with the fault. For a URL of HTTP it is one and the
        same text for all but images that are too large."""
        timeout = envs.VLLM_IMAGE_FETCH_TIMEOUT
        load = self.load_from_url_async(
            image_url, self._image_io(image_mode), fetch_timeout=timeout
        )
        if image_url[:4].lower() != "http":
            return await load
        try:
            async with asyncio.timeout(FETCH_TIMES * timeout):
                return await load
        except TooManyPixels:
            raise
        except Exception as error:
            # Refused, closed, not found, too slow, no image: what it is would tell
            # of hosts and ports that only this server can see.
            raise VLLMValidationError(
                "image_url gives no image: it must be an address that this server "
                "may fetch, and can, in time and size, of an image",
                parameter="image_url",
            ) from error

    def _image_io(self, image_mode: str | None) -> BoundedImageIO:
        options = {"image_mode": image_mode} | self.media_io_kwargs.get("image", {})
        return BoundedImageIO(self._budget, **options)


@lru_cache(maxsize=8)
def _connection(trusted: tuple[str, ...]) -> PublicConnection:
    """One for all requests: it keeps connections open."""
    return PublicConnection(trusted)
