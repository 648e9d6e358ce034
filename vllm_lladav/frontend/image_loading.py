# SPDX-License-Identifier: Apache-2.0
"""Bytes of a client to an image, bounded by what its header says."""

from threading import Lock
from typing import Any

from PIL import Image
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.media.image import ImageMediaIO

from vllm_lladav.frontend.media_rules import MediaRules, TooManyPixels
from vllm_lladav.model.stored_image import StoredImage

_PLAIN = ImageMediaIO()


class PixelBudget:
    """Pixels that the images of one request have left; threads may share it."""

    def __init__(self, rules: MediaRules) -> None:
        self._rules = rules
        self._taken = 0
        self._lock = Lock()

    def take(self, width: int, height: int) -> None:
        """Account for an image before it is decoded.

        Raises:
            TooManyPixels: naming the image's size and the bound.
        """
        rules, pixels = self._rules, width * height
        if pixels > rules.max_image_pixels:
            raise TooManyPixels(
                f"image of {width}x{height} ({pixels}) pixels; an image may have at "
                f"most {rules.max_image_pixels} (--max-image-pixels)",
                parameter="image_url",
            )
        with self._lock:
            self._taken += pixels
            if self._taken > rules.max_request_image_pixels:
                raise TooManyPixels(
                    f"the images of the request have {self._taken} pixels or more; "
                    f"they may have at most {rules.max_request_image_pixels} in all "
                    "(--max-request-image-pixels)",
                    parameter="image_url",
                )


class BoundedImageIO(ImageMediaIO):
    """vLLM's reader of image bytes, without the pixels.

    What it returns is a :class:`StoredImage`, decoded by the model's processor. Where
    a client chose a background or mode with ``media_io_kwargs``, vLLM decodes.
    """

    def __init__(self, budget: PixelBudget, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._budget = budget

    def load_bytes(  # type: ignore[override]
        self, data: bytes
    ) -> MediaWithBytes[Image.Image]:
        """Raises ``ValueError`` for what is no image or too large."""
        try:
            image = StoredImage(data)
        except Exception as error:  # Pillow's parsers raise whatever comes up.
            raise ValueError(f"image cannot be read: {error}") from error
        self._budget.take(*image.size)
        chosen = (self.image_mode, self.rgba_background_color)
        if chosen != (_PLAIN.image_mode, _PLAIN.rgba_background_color):
            return super().load_bytes(data)
        return MediaWithBytes(image, data)
