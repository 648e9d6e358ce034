# SPDX-License-Identifier: Apache-2.0
"""Which images the engine has: those of requests that it got.

vLLM's front end keeps the hashes of the images that it processed, and sends the next
request with one of them without its pixels. It takes them for sent once they are
processed. A request that is refused afterwards never gets there, and neither would the
pixels of the next one.
"""

from collections import OrderedDict
from typing import Any

MOST_HELD_BACK = 4096
"""Hashes of requests that were not accepted yet, or never will be."""


class HeldBack:
    """Entries of a front end's cache that wait for their request to be accepted.

    Args:
        cache: vLLM's ``LruKeyReplicatedSenderCache``.
    """

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self._entries: OrderedDict[str, Any] = OrderedDict()

    def take(self, mm_hash: str) -> None:
        """Hold back what vLLM has just stored under ``mm_hash``, if anything."""
        entry = self._cache._cache.pop(mm_hash, None)
        if entry is None:  # Larger than the cache.
            return
        self._entries[mm_hash] = entry
        if len(self._entries) > MOST_HELD_BACK:
            self._entries.popitem(last=False)

    def accept(self, mm_hash: str) -> None:
        """The request goes to the engine, with the pixels or without."""
        entry = self._entries.pop(mm_hash, None)
        if entry is not None:
            self._cache.cache_if_fits(self._cache._cache, mm_hash, entry)


def accept_images(renderer: Any, request: Any) -> None:
    """The images of ``request`` go to the engine."""
    held_back = getattr(renderer.mm_processor_cache, "lladav_held_back", None)
    if held_back is None:
        return
    for feature in request.mm_features or ():
        held_back.accept(feature.mm_hash or feature.identifier)
