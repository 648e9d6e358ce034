# SPDX-License-Identifier: Apache-2.0
"""Images of clients are bounded, and fetched from public addresses.

Why: vLLM decodes all images of a request at once, up to 2 GB of pixels each, and
fetches any URL, 127.0.0.1 and metadata services included, with errors that tell an
open port from a closed one.
How: wraps the property of the chat parsers that makes a request's media connector, and
hands out ``frontend/media_connector.py``; the pixels are counted at the request's
tracker.
Affects: our models, unless ``VLLM_MEDIA_CONNECTOR`` names another connector. ``LLM``
fetches from any address, and PIL images are not counted.
Can go: when vLLM bounds requests' pixels and has a hook for addresses.
"""

from typing import Any

from vllm_lladav.model.families import is_ours
from vllm_lladav.patches.wrapping import wrap


def apply() -> None:
    import vllm.envs as envs
    from vllm.renderers import chat_utils

    def connect(make: Any, self: Any) -> Any:
        tracker = self._tracker
        if not is_ours(tracker.model_config) or envs.VLLM_MEDIA_CONNECTOR != "http":
            return make(self)
        from vllm_lladav.frontend.image_loading import PixelBudget
        from vllm_lladav.frontend.media_connector import BoundedMediaConnector
        from vllm_lladav.frontend.media_rules import media_rules_of

        # A request has a parser for every message, and one tracker.
        if not hasattr(tracker, "lladav_pixels"):
            tracker.lladav_pixels = PixelBudget(media_rules_of(tracker.model_config))
        return BoundedMediaConnector(
            tracker.lladav_pixels,
            media_io_kwargs=tracker.media_io_kwargs,
            allowed_local_media_path=tracker.allowed_local_media_path,
            allowed_media_domains=tracker.allowed_media_domains,
        )

    for parser in (
        chat_utils.MultiModalContentParser,
        chat_utils.AsyncMultiModalContentParser,
    ):
        wrap(vars(parser)["_connector"], "func")(connect)
