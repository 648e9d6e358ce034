# SPDX-License-Identifier: Apache-2.0
"""A picture that cannot be loaded is a bad request that names its URL.

Why: vLLM's loader raises whatever went wrong: ``file://`` without the flag, a host that
does not answer and a broken chunk of a PNG are an HTTP 500, a data URL without base64 a
501, and a character that is not base64 a 400 that does not say what of the request it
is in.
How: wraps ``MediaConnector.load_from_url`` and ``load_from_url_async``. Errors that are
vLLM's own already stay what they are.
Affects: all models; the request fails either way.
Can go: when vLLM's loader raises errors of the request.
"""

from typing import Any

from vllm_lladav.patches.wrapping import wrap

SHOWN = 60
"""Characters of a URL in an error message."""


def apply() -> None:
    from vllm.exceptions import VLLMClientError
    from vllm.multimodal.media.connector import MediaConnector

    @wrap(MediaConnector, "load_from_url")
    def load(load_from_url: Any, self: Any, url: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return load_from_url(self, url, *args, **kwargs)
        except VLLMClientError:
            raise
        except Exception as error:
            raise _refusal(url, error) from error

    @wrap(MediaConnector, "load_from_url_async")
    async def load_async(
        load_from_url: Any, self: Any, url: str, *args: Any, **kwargs: Any
    ) -> Any:
        try:
            return await load_from_url(self, url, *args, **kwargs)
        except VLLMClientError:
            raise
        except Exception as error:
            raise _refusal(url, error) from error


def _refusal(url: str, error: Exception) -> Exception:
    from vllm.exceptions import VLLMValidationError

    shown = url if len(url) <= SHOWN else f"{url[:SHOWN]}..."
    return VLLMValidationError(
        f"image_url {shown!a} cannot be loaded: {str(error) or type(error).__name__}",
        parameter="image_url",
    )
