# SPDX-License-Identifier: Apache-2.0
"""An image of a refused request is not taken for sent.

Why: the front end marks an image as known to the engine while it processes it. If the
request is refused afterwards (a parameter, its length), the next valid request with the
image goes out without its pixels and is a 500.
How: wraps ``LruKeyReplicatedSenderCache``: an entry is held back until
``request_validation.py`` lets the request through. A request that comes meanwhile with
the same image brings its pixels again.
Affects: engines of our models, with vLLM's default image cache.
Can go: when vLLM marks images as sent once they are.
"""

from typing import Any

from vllm_lladav.model.families import is_ours
from vllm_lladav.patches.wrapping import wrap


def apply() -> None:
    from vllm.multimodal.cache.lru import LruKeyReplicatedSenderCache

    @wrap(LruKeyReplicatedSenderCache, "__init__")
    def initialize(init: Any, self: Any, model_config: Any) -> None:
        from vllm_lladav.frontend.sent_images import HeldBack

        init(self, model_config)
        self.lladav_held_back = HeldBack(self) if is_ours(model_config) else None

    @wrap(LruKeyReplicatedSenderCache, "get_and_update_item")
    def get_and_hold_back(get: Any, self: Any, mm_item: Any, mm_hash: str) -> Any:
        is_new = not self.is_cached_item(mm_hash)
        found = get(self, mm_item, mm_hash)
        if is_new and self.lladav_held_back is not None:
            self.lladav_held_back.take(mm_hash)
        return found
