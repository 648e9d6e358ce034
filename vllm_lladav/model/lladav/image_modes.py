# SPDX-License-Identifier: Apache-2.0
"""In which of three ways an image is looked at.

``anyres``       tile 0 is the whole image squeezed to a square; the others cut
                 the image, fitted into the best of the pinpoint canvases.
``pad_stacked``  one tile, the image padded to a square: 729 tokens.
``pad_list``     the same and one newline embedding: 730 tokens.
"""

from typing import Literal, cast, get_args

ImageMode = Literal["anyres", "pad_stacked", "pad_list"]
IMAGE_MODES: tuple[ImageMode, ...] = get_args(ImageMode)
IMAGE_MODE_CHOICES = ("auto", *IMAGE_MODES)


def resolve_image_mode(mode: str, uses_anyres: bool, num_images: int) -> ImageMode:
    """The mode of all images of a request.

    Args:
        mode: one of `IMAGE_MODE_CHOICES`. ``auto`` is what the official evaluation
            does: it tiles a single image if the checkpoint does, and pads several.
        uses_anyres: whether the checkpoint tiles images: its ``image_aspect_ratio``
            is ``anyres`` or ``anyres_max_N`` rather than ``pad``.
        num_images: in the request.

    Raises:
        ValueError: for ``anyres`` with a checkpoint that does not tile.
    """
    if mode == "auto":
        return "anyres" if uses_anyres and num_images == 1 else "pad_stacked"
    if mode == "anyres" and not uses_anyres:
        raise ValueError(
            "image_mode='anyres' needs a checkpoint with image_aspect_ratio "
            "'anyres' or 'anyres_max_N', not 'pad'"
        )
    return cast(ImageMode, mode)
