# SPDX-License-Identifier: Apache-2.0
"""Images that are decoded late are the pictures that Pillow reads at once."""

from io import BytesIO

import pytest
from PIL import Image
from vllm.multimodal.media import MediaWithBytes

from vllm_lladav.frontend.image_loading import BoundedImageIO, PixelBudget
from vllm_lladav.frontend.media_rules import MediaRules, TooManyPixels
from vllm_lladav.model.stored_image import StoredImage

RULES = MediaRules(200, 300, allow_image_uuids=False)


def encoded(image: Image.Image, format: str = "PNG", **save) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **save)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_pixels_are_those_of_pillow(mode: str):
    gradient = Image.linear_gradient("L").resize((31, 17))
    image = (gradient.convert("I") if mode == "I;16" else gradient).convert(mode)
    data = encoded(image)
    stored = StoredImage(data)
    assert stored.size == (31, 17)
    expected = Image.open(BytesIO(data)).convert("RGB")
    assert stored.decode().mode == "RGB"
    assert stored.decode().tobytes() == expected.tobytes()


def test_jpeg_is_decoded_fully_and_not_turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.radial_gradient("L").resize((640, 480)).convert("RGB")
    data = encoded(image, "JPEG", exif=exif)
    assert StoredImage(data).size == (640, 480)
    assert StoredImage(data).decode().tobytes() == Image.open(BytesIO(data)).tobytes()


def test_an_image_that_ends_early():
    data = encoded(Image.effect_noise((64, 64), 50))
    stored = StoredImage(data[: len(data) // 2])
    with pytest.raises(ValueError, match="image cannot be read"):
        stored.decode()


def test_pixels_are_counted_before_they_are_decoded():
    image_io = BoundedImageIO(PixelBudget(RULES))
    found = image_io.load_bytes(encoded(Image.new("1", (10, 20))))
    assert isinstance(found, MediaWithBytes)
    assert isinstance(found.media, StoredImage)
    with pytest.raises(TooManyPixels, match=r"10x21 \(210\).*at most 200"):
        image_io.load_bytes(encoded(Image.new("1", (10, 21))))
    with pytest.raises(TooManyPixels, match="in all"):
        image_io.load_bytes(encoded(Image.new("1", (10, 11))))


def test_a_chosen_background_is_still_laid_under():
    image_io = BoundedImageIO(PixelBudget(RULES), rgba_background_color=(0, 0, 255))
    found = image_io.load_bytes(encoded(Image.new("RGBA", (3, 3))))
    assert found.media.getpixel((0, 0)) == (0, 0, 255)
