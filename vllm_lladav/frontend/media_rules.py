# SPDX-License-Identifier: Apache-2.0
"""What clients may send as an image, and how much of it."""

from typing import Any, NamedTuple, cast

import vllm.envs as envs
from vllm.exceptions import VLLMValidationError

from vllm_lladav.options.options import ServerOptions


class MediaRules(NamedTuple):
    """A tuple, because it travels with vLLM's config, which is written as JSON.

    Attributes:
        max_image_pixels: of one image, whose width times height it bounds.
        max_request_image_pixels: of all images of a request.
        allow_image_uuids: whether clients may name images.
    """

    max_image_pixels: int
    max_request_image_pixels: int
    allow_image_uuids: bool


class TooManyPixels(VLLMValidationError):
    """An image, or all of a request, are above what the server decodes."""


def keep_media_rules(model_config: Any, server: ServerOptions) -> None:
    """Keep the server's rules with the config of the checkpoint.

    vLLM's own bound, ``VLLM_MAX_IMAGE_PIXELS``, counts where it is lower; 0 is none.
    """
    bounds = (server.max_image_pixels, envs.VLLM_MAX_IMAGE_PIXELS)
    model_config.hf_config.lladav_media_rules = MediaRules(
        max_image_pixels=min(bound for bound in bounds if bound > 0),
        max_request_image_pixels=server.max_request_image_pixels,
        allow_image_uuids=server.image_uuids == "allow",
    )


def media_rules_of(model_config: Any) -> MediaRules:
    """Of the server (vLLM's ``ModelConfig``)."""
    # A tuple comes back as a list from a config that was copied as JSON.
    return MediaRules(*cast(MediaRules, model_config.hf_config.lladav_media_rules))


def check_uuid(model_config: Any, uuid: object, parameter: str = "uuid") -> None:
    """Refuse a name for an image.

    Names are shared by all clients: who knows or guesses another's is answered about
    the other's picture, and can put a picture under it first.

    Raises:
        VLLMValidationError: naming what the client sent.
    """
    if uuid is None or media_rules_of(model_config).allow_image_uuids:
        return
    raise VLLMValidationError(
        f"{parameter} is not accepted: clients of this server may not name images "
        "(--image-uuids allow lets clients that trust each other)",
        parameter=parameter,
    )
