# SPDX-License-Identifier: Apache-2.0
"""An image that announces an absurd size is a bad request.

Why: Pillow refuses to open it with ``DecompressionBombError``, which vLLM's
loader does not turn into an error of the request: HTTP 500.
How: wraps ``ImageMediaIO.load_bytes``.
Affects: all models; the request fails either way.
Can go: when vLLM catches it.
"""

import functools
from typing import Any


def apply() -> None:
    from PIL.Image import DecompressionBombError
    from vllm.multimodal.media.image import ImageMediaIO

    load_bytes = ImageMediaIO.load_bytes
    if hasattr(load_bytes, "lladav"):
        return

    @functools.wraps(load_bytes)
    def load_sane_bytes(self: Any, data: bytes) -> Any:
        try:
            return load_bytes(self, data)
        except DecompressionBombError as error:
            raise ValueError(f"image cannot be read: {error}") from error

    load_sane_bytes.lladav = True  # type: ignore[attr-defined]
    ImageMediaIO.load_bytes = load_sane_bytes
