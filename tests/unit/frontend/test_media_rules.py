# SPDX-License-Identifier: Apache-2.0
"""Names that clients give to images, and the lower of two bounds of pixels."""

from types import SimpleNamespace

import pytest
from vllm.exceptions import VLLMValidationError

from vllm_lladav.frontend.media_rules import (
    check_uuid,
    keep_media_rules,
    media_rules_of,
)
from vllm_lladav.options.options import ServerOptions


def served(**options) -> SimpleNamespace:
    """vLLM's ``ModelConfig``, as far as it is looked at."""
    model_config = SimpleNamespace(hf_config=SimpleNamespace())
    keep_media_rules(model_config, ServerOptions(**options))
    return model_config


def test_names_are_refused_by_default():
    check_uuid(served(), None)
    with pytest.raises(VLLMValidationError, match="features is not accepted"):
        check_uuid(served(), {"mm_hashes": {}}, "features")


def test_names_are_allowed_by_option():
    check_uuid(served(image_uuids="allow"), "cat")


@pytest.mark.parametrize(("of_vllm", "bound"), [(0, 2**26), (100, 100), (2**30, 2**26)])
def test_the_lower_bound_counts(monkeypatch, of_vllm: int, bound: int):
    monkeypatch.setenv("VLLM_MAX_IMAGE_PIXELS", str(of_vllm))
    assert media_rules_of(served()).max_image_pixels == bound
