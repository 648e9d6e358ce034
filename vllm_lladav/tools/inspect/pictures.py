# SPDX-License-Identifier: Apache-2.0
"""Pictures as the model takes them; needs Pillow only."""

from io import BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError


def read_picture(image: Image.Image | str | Path) -> Image.Image:
    """Open a picture as the model takes it: in RGB, and not turned by its EXIF.

    Raises:
        ValueError: if it is no image that Pillow reads.
        OSError: if there is no such file.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    data = Path(image).read_bytes()
    try:
        return Image.open(BytesIO(data)).convert("RGB")
    except UnidentifiedImageError:
        raise ValueError(f"{image} is no image that Pillow can read") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{image} cannot be read: {error}") from error
