# SPDX-License-Identifier: Apache-2.0
"""Images of every kind, and what is none, as URLs of a request."""

import base64
import io
from functools import cache
from random import Random
from typing import Any

from PIL import Image

from tests.server.client import data_url

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'


def _saved(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    data = io.BytesIO()
    picture.save(data, form, **options)
    return data.getvalue()


@cache
def whole_images() -> dict[str, bytes]:
    """Files that an image library reads, by what is odd about them."""
    ramp = Image.linear_gradient("L").resize((36, 24))
    colours = ramp.convert("RGB")
    palette = colours.convert("P")
    palette.info["transparency"] = 3
    exif = Image.Exif()
    exif[0x0112] = 6  # Lies on its side.
    frames = [ramp.rotate(angle) for angle in (90, 180)]
    return {
        "plain": _saved(colours),
        "1x1": _saved(Image.new("RGB", (1, 1))),
        "1xN": _saved(Image.new("RGB", (1, 3000))),
        "Nx1": _saved(Image.new("RGB", (3000, 1))),
        "animated gif": _saved(ramp, "GIF", save_all=True, append_images=frames),
        "animated webp": _saved(ramp, "WEBP", save_all=True, append_images=frames),
        "animated png": _saved(ramp, save_all=True, append_images=frames),
        "cmyk": _saved(colours.convert("CMYK"), "JPEG"),
        "16 bit": _saved(ramp.convert("I;16")),
        "1 bit": _saved(ramp.convert("1")),
        "grey and alpha": _saved(ramp.convert("LA")),
        "alpha": _saved(colours.convert("RGBA")),
        "palette and alpha": _saved(palette, transparency=3),
        "rotated": _saved(colours, "JPEG", exif=exif),
        "floats": _saved(ramp.convert("F"), "TIFF"),
        "bmp": _saved(colours, "BMP"),
        "ico": _saved(colours, "ICO"),
        "ppm": _saved(colours, "PPM"),
    }


BROKEN_URLS = (
    *("", "data:", "data:image/png", "data:image/png,abc", "data:,", "data:;base64,"),
    *(
        "data:image/png;base64,!!!!",
        "data:image/png;base64,AAA",
        "data:image/png;base64",
    ),
    *("data:text/html;base64,AAAA", "data:image/svg+xml;utf8,<svg/>", "x", "\0"),
    *("file:///etc/passwd", "file:///", "file://", "ftp://127.0.0.1/x.png"),
    *("http://", "http://[", "http://127.0.0.1:1/x.png", "https://127.0.0.1:1/x.png"),
    *("http://127.0.0.1:99999/", "http://127.0.0.1:x/", "http://\ud800/", "HTTP:"),
    *("//127.0.0.1:1/x.png", "http:///x.png", "http://user:pw@127.0.0.1:1/x.png"),
    *("data:image/png;base64,\ud800", "javascript:alert(1)", "data:image/jpeg;base64,"),
)


def picture_url(random: Random) -> tuple[str, str]:
    """What it is, and its URL."""
    if random.random() < 0.35:
        url = random.choice(BROKEN_URLS)
        return f"url {url[:40]!r}", url
    name, data = random.choice(list(whole_images().items()))
    spoil = random.randrange(6)
    if spoil == 0:
        cut = random.randrange(len(data))
        return f"{name}, {cut} bytes", data_url(data[:cut])
    if spoil == 1:
        at = random.randrange(len(data))
        spoilt = data[:at] + random.randbytes(20) + data[at + 20 :]
        return f"{name}, spoilt at {at}", data_url(spoilt)
    if spoil == 2:
        mime = random.choice(("image/jpeg", "text/plain", "video/mp4", "", "a/b;c=d"))
        return f"{name} as {mime!r}", data_url(data, mime)
    if spoil == 3:
        text = base64.b64encode(data).decode()
        at = random.randrange(len(text))
        odd = random.choice(("\n", "-_", "=", "%", "\u00e9", " "))
        return f"{name}, {odd!r} at {at}", (
            f"data:image/png;base64,{text[:at]}{odd}{text[at:]}"
        )
    if spoil == 4 and random.random() < 0.3:
        return "svg", data_url(SVG, "image/svg+xml")
    return name, data_url(data)
