# SPDX-License-Identifier: Apache-2.0
"""An image that is known by its header until its pixels are needed.

Pixels of a picture are a thousand times its bytes, and a request may bring many
pictures, some of which are cached. So they are decoded one after the other, each when
it is cut into tiles, and let go afterwards.
"""

import ctypes
from contextlib import suppress
from io import BytesIO

from PIL import Image
from vllm.multimodal.image import open_image

LARGE_PIXELS = 2**24
"""From here on, freed pixels are asked back from the allocator, which takes
milliseconds and would keep hundreds of megabytes."""


class StoredImage(Image.Image):
    """An encoded image; ``size`` is what its header says, turned by nothing.

    A ``PIL.Image.Image`` without pixels, because vLLM asks images for no more than
    their size and hands them on; :meth:`decode` has the pixels.

    Raises:
        OSError: if the bytes are of no image format that vLLM reads.
    """

    def __init__(self, encoded: bytes) -> None:
        super().__init__()
        self._encoded = encoded
        with open_image(BytesIO(encoded)) as header:
            self._size = header.size

    def decode(self) -> Image.Image:
        """The picture in RGB, as ``PIL.Image.convert`` makes it.

        Raises:
            ValueError: if it cannot be decoded, or has another size than it says.
        """
        try:
            with open_image(BytesIO(self._encoded)) as stored:
                stored.load()
                picture = stored if stored.mode == "RGB" else stored.convert("RGB")
        except Exception as error:  # Pillow's decoders raise whatever comes up.
            raise ValueError(f"image cannot be read: {error}") from error
        if picture.size != self._size:
            raise ValueError(
                f"image cannot be read: it is of {picture.width}x{picture.height} "
                f"pixels, its header says {self._size[0]}x{self._size[1]}"
            )
        return picture


def give_back_memory(num_pixels: int) -> None:
    """Have freed memory returned to the system after images of so many pixels."""
    if num_pixels < LARGE_PIXELS:
        return
    with suppress(OSError, AttributeError):  # glibc has it, others need not.
        ctypes.CDLL(None).malloc_trim(0)
