# SPDX-License-Identifier: Apache-2.0
"""vLLM's own front-end cache, with entries that are held back."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.multimodal.cache.lru import LruKeyReplicatedSenderCache
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldElem,
    MultiModalKwargsItem,
)

from vllm_lladav.frontend import sent_images
from vllm_lladav.frontend.sent_images import accept_images
from vllm_lladav.patches import refused_images

BYTE = 1 / 1024**3
"""As vLLM counts a cache's size."""


@pytest.fixture(autouse=True)
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    refused_images.apply()
    monkeypatch.setattr(refused_images, "is_ours", lambda model_config: True)


def sender(num_bytes: int = 1 << 20) -> LruKeyReplicatedSenderCache:
    config = SimpleNamespace(mm_processor_cache_gb=num_bytes * BYTE)
    model_config: Any = SimpleNamespace(get_multimodal_config=lambda: config)
    return LruKeyReplicatedSenderCache(model_config)


def item(num_bytes: int = 100) -> Any:
    pixels = torch.zeros(num_bytes, dtype=torch.uint8)
    element = MultiModalFieldElem(data=pixels, field=MultiModalBatchedField())
    return MultiModalKwargsItem({"pixel_values": element})


def has_pixels(cache: LruKeyReplicatedSenderCache, name: str, pixels: Any) -> bool:
    """Whether a request with an image is sent with its pixels."""
    found, _ = cache.get_and_update_item((pixels, []), name)
    return found is not None


def accept(cache: LruKeyReplicatedSenderCache, *names: str) -> None:
    features = [SimpleNamespace(mm_hash=name) for name in names]
    renderer = SimpleNamespace(mm_processor_cache=cache)
    accept_images(renderer, SimpleNamespace(mm_features=features))


def test_pixels_are_sent_until_a_request_is_accepted():
    cache = sender()
    assert has_pixels(cache, "a", item())
    assert has_pixels(cache, "a", item())  # The first one may still be refused.
    accept(cache, "a")
    assert not has_pixels(cache, "a", item())
    accept(cache, "a")
    assert not has_pixels(cache, "a", item())
    assert has_pixels(cache, "b", item())


def test_images_that_do_not_fit_are_never_taken_for_sent():
    cache = sender(num_bytes=50)
    for _ in range(2):
        assert has_pixels(cache, "a", item())
        accept(cache, "a")


def test_refused_requests_do_not_add_up(monkeypatch):
    monkeypatch.setattr(sent_images, "MOST_HELD_BACK", 3)
    cache = sender()
    for number in range(10):
        assert has_pixels(cache, str(number), item())
    accept(cache, "0", "9")
    assert has_pixels(cache, "0", item())  # Forgotten, and sent once more.
    assert not has_pixels(cache, "9", item())


def test_requests_without_images_or_a_cache():
    accept_images(SimpleNamespace(mm_processor_cache=None), None)
    accept_images(
        SimpleNamespace(mm_processor_cache=sender()), SimpleNamespace(mm_features=None)
    )
