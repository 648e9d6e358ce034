# SPDX-License-Identifier: Apache-2.0
"""An image that announces an absurd size is a bad request.

Why: Pillow refuses to open it with ``DecompressionBombError``, which vLLM's
loader does not turn into an error of the request: HTTP 500.
How: wraps ``ImageMediaIO.load_bytes``.
Affects: all models; the request fails either way.
Can go: when vLLM catches it.
"""

from typing import Any

from vllm_lladav.patches.wrapping import wrap


def apply() -> None:
    from PIL.Image import DecompressionBombError
    from vllm.multimodal.media.image import ImageMediaIO

    @wrap(ImageMediaIO, "load_bytes")
    def load_sane_bytes(load_bytes: Any, self: Any, data: bytes) -> Any:
        try:
            return load_bytes(self, data)
        except DecompressionBombError as error:
            raise ValueError(f"image cannot be read: {error}") from error
