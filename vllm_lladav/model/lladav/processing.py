# SPDX-License-Identifier: Apache-2.0
"""vLLM's multimodal processor for LLaDA-V: images to tiles and placeholders.

Options, in ``mm_processor_kwargs`` of the server or of a request:

``image_mode``              "auto" (default), "anyres", "pad_stacked", "pad_list".
                            "auto" is what the official evaluation does: a single
                            image as ``image_aspect_ratio`` of the checkpoint says,
                            several images ``pad_stacked``.
``keep_token_after_image``  keep the token that the official code loses after
                            every ``<image>`` (default false).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from vllm.config.multimodal import MultiModalDummyOptions
from vllm.inputs import MultiModalDataDict, MultiModalInput
from vllm.multimodal.image import open_image
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.parse import (
    ImageEmbeddingItems,
    ImageProcessorItems,
    ModalityDataItems,
    MultiModalDataItems,
    MultiModalDataParser,
)
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    ProcessorInputs,
    PromptReplacement,
    PromptUpdate,
    TimingContext,
)
from vllm.renderers import TokenizeParams

from vllm_lladav.denoising.traits import traits_of
from vllm_lladav.model.lladav.anyres import (
    AnyresGeometry,
    largest_image,
    num_visual_tokens,
    preprocess,
)
from vllm_lladav.model.lladav.config import LladavConfig
from vllm_lladav.model.lladav.image_modes import (
    IMAGE_MODE_CHOICES,
    IMAGE_MODES,
    ImageMode,
    resolve_image_mode,
)
from vllm_lladav.model.lladav.prompt import IMAGE_MARK, place_images
from vllm_lladav.model.lladav.vision import geometry_from_config
from vllm_lladav.model.stored_image import StoredImage, give_back_memory

_EXIF_ORIENTATION = 0x0112
_VLLM_BACKGROUND = (255, 255, 255)


@dataclass(frozen=True)
class ImageOptions:
    """Validated ``mm_processor_kwargs``."""

    image_mode: str = "auto"
    keep_token_after_image: bool = False

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, object]) -> "ImageOptions":
        """Raises ValueError for unknown names and values."""
        known = cls.__dataclass_fields__
        if unknown := sorted(set(kwargs) - set(known)):
            raise ValueError(
                f"mm_processor_kwargs has unknown key {unknown[0]!r}; "
                f"allowed: {', '.join(known)}"
            )
        options = cls(**kwargs)  # type: ignore[arg-type]
        if options.image_mode not in IMAGE_MODE_CHOICES:
            raise ValueError(
                f"image_mode={options.image_mode!r} in mm_processor_kwargs; "
                f"allowed: {', '.join(IMAGE_MODE_CHOICES)}"
            )
        if not isinstance(options.keep_token_after_image, bool):
            raise ValueError(
                f"keep_token_after_image={options.keep_token_after_image!r} in "
                "mm_processor_kwargs; allowed: true, false"
            )
        return options

    def resolve_mode(self, config: LladavConfig, num_images: int) -> ImageMode:
        """The concrete mode of a request with that many images."""
        return resolve_image_mode(self.image_mode, config.uses_anyres, num_images)


class LladavDataParser(MultiModalDataParser):
    """Reads images as the official code does: ``PIL.Image.convert("RGB")``.

    vLLM would lay transparent pixels on white and turn the picture by its EXIF
    orientation. Images it has loaded from bytes are read again where that
    changed them, unless the user chose a background with ``media_io_kwargs``.
    """

    def _parse_image_data(self, data: Any) -> ModalityDataItems[Any, Any] | None:
        is_embeddings: bool = self.is_embeddings(data)
        if data is None or is_embeddings:
            return super()._parse_image_data(data)
        if isinstance(data, (np.ndarray, torch.Tensor)):
            data = list(data) if data.ndim == 4 else [data]
        elif isinstance(data, (Image.Image, MediaWithBytes)):
            data = [data]
        return ImageProcessorItems([_read_image(item) for item in data])


def _read_image(item: Any) -> Any:
    """A PIL image in RGB; None (an image the client only names) stays None, and what
    is decoded later stays as it is."""
    try:
        if isinstance(item, MediaWithBytes):
            if isinstance(item.media, StoredImage):
                return item
            return replace(item, media=_to_rgb(_undo_vllm_changes(item)))
        return None if item is None else _to_rgb(item)
    except (OSError, SyntaxError) as error:  # what Pillow raises on broken files
        raise ValueError(f"image cannot be read: {error}") from error


def _undo_vllm_changes(item: MediaWithBytes[Image.Image]) -> Image.Image:
    """The picture as stored in the bytes, where vLLM's loader changed it."""
    background = (item.io_config or {}).get("rgba_background_color", _VLLM_BACKGROUND)
    if tuple(background) != _VLLM_BACKGROUND or not item.original_bytes:
        return item.media
    stored = open_image(BytesIO(item.original_bytes))
    is_turned = stored.getexif().get(_EXIF_ORIENTATION, 1) != 1
    return stored if is_turned or item.io_config is not None else item.media


def _to_rgb(image: Image.Image | np.ndarray | torch.Tensor) -> Image.Image:
    if isinstance(image, StoredImage):
        return image
    if not isinstance(image, Image.Image):
        image = _array_to_image(np.asarray(image))
    image.load()  # files are read lazily
    return image if image.mode == "RGB" else image.convert("RGB")


def _decoded(image: Image.Image) -> Image.Image:
    return image.decode() if isinstance(image, StoredImage) else image


def _array_to_image(array: np.ndarray) -> Image.Image:
    """``[h, w, c]`` or ``[c, h, w]``, uint8 or floats in [0, 1]."""
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or 0 in array.shape:
        raise ValueError(
            f"image array of shape {array.shape}; allowed: [height, width, channels] "
            "or [channels, height, width] with 1, 3 or 4 channels, not empty"
        )
    if array.dtype != np.uint8:
        if array.min() < 0 or array.max() > 1:
            raise ValueError(
                f"image array of {array.dtype} with values in "
                f"[{array.min()}, {array.max()}]; allowed: uint8, or floats in [0, 1]"
            )
        array = np.round(array.astype(np.float64) * 255).astype(np.uint8)
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


class LladavProcessingInfo(BaseProcessingInfo):
    def get_hf_config(self) -> LladavConfig:
        return self.ctx.get_hf_config(LladavConfig)

    @cached_property
    def geometry(self) -> AnyresGeometry:
        return geometry_from_config(self.get_hf_config())

    @property
    def image_token_id(self) -> int:
        token_id = traits_of(self.ctx.model_config).image_token_id
        assert token_id is not None
        return token_id

    def get_options(self, kwargs: Mapping[str, object]) -> ImageOptions:
        """The request's options over the server's."""
        return ImageOptions.from_kwargs(self.ctx.get_merged_mm_kwargs(kwargs))

    def get_data_parser(self) -> MultiModalDataParser:
        return LladavDataParser(
            expected_hidden_size=self._get_expected_hidden_size(),
            allow_missing_mm_embeddings=self.allow_missing_mm_embeddings,
        )

    def get_default_tok_params(self) -> TokenizeParams:
        # The template writes <|startoftext|> itself.
        return super().get_default_tok_params().with_kwargs(add_special_tokens=False)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        # Those of a longer prompt are refused by their number, before they are read.
        least = self.geometry.tile_tokens
        return {"image": max(1, self.ctx.model_config.max_model_len // least)}

    @property
    def largest_mode(self) -> ImageMode:
        return "anyres" if self.get_hf_config().uses_anyres else "pad_list"

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int] | None:
        # A request may choose any mode, whatever the server's default is.
        size = largest_image(self.geometry)
        return {"image": num_visual_tokens(*size, self.geometry, self.largest_mode)}


class LladavDummyInputsBuilder(BaseDummyInputsBuilder[LladavProcessingInfo]):
    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return IMAGE_MARK * mm_counts.get("image", 0)

    def get_dummy_mm_data(
        self,
        seq_len: int,
        mm_counts: Mapping[str, int],
        mm_options: MultiModalDummyOptions,
    ) -> MultiModalDataDict:
        width, height = largest_image(self.info.geometry)
        return {
            "image": self._get_dummy_images(
                width=width,
                height=height,
                num_images=mm_counts.get("image", 0),
                overrides=mm_options.get("image"),
            )
        }


class LladavMultiModalProcessor(BaseMultiModalProcessor[LladavProcessingInfo]):
    def __init__(
        self,
        info: LladavProcessingInfo,
        dummy_inputs: BaseDummyInputsBuilder[LladavProcessingInfo],
    ) -> None:
        super().__init__(info, dummy_inputs)
        # Refuse wrong server-wide options at startup.
        info.get_options({}).resolve_mode(info.get_hf_config(), num_images=1)

    def get_dummy_inputs(
        self,
        seq_len: int,
        mm_counts: Mapping[str, int],
        mm_options: MultiModalDummyOptions,
    ) -> ProcessorInputs:
        inputs = super().get_dummy_inputs(seq_len, mm_counts, mm_options)
        return replace(
            inputs, hf_processor_mm_kwargs={"image_mode": self.info.largest_mode}
        )

    def apply(
        self, inputs: ProcessorInputs, timing_ctx: TimingContext
    ) -> MultiModalInput:
        """Fix the image mode and the places of the images, then go on as usual.

        The mode depends on the number of images in the request, but vLLM hashes
        and caches image by image. So "auto" becomes a concrete mode here: the
        processor arguments are part of an image's hash, and the same image in
        another mode is another entry of the processor and encoder caches.
        """
        options = self.info.get_options(inputs.hf_processor_mm_kwargs)
        num_images = inputs.mm_data_items.get_count("image", strict=False)
        mode = options.resolve_mode(self.info.get_hf_config(), num_images)
        prompt = place_images(
            self.info.get_tokenizer(),
            inputs.prompt,
            self.info.image_token_id,
            options.keep_token_after_image,
        )
        num_marks = prompt.count(self.info.image_token_id)
        if num_marks != num_images:
            raise ValueError(
                f"the prompt has {num_marks} {IMAGE_MARK} mark(s) for {num_images} "
                "image(s); there must be one per image"
            )
        return super().apply(
            replace(inputs, prompt=prompt, hf_processor_mm_kwargs={"image_mode": mode}),
            timing_ctx,
        )

    def _call_hf_processor(
        self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]
    ) -> BatchFeature:
        """Tiles, original sizes and modes of the images that are not cached."""
        images = cast(Sequence[Image.Image], hf_data["images"])
        mode = cast(ImageMode, hf_kwargs["image_mode"])
        dtype = self.info.ctx.model_config.dtype
        geometry = self.info.geometry
        tiles = [
            preprocess(_decoded(image), geometry, mode).to(dtype) for image in images
        ]
        give_back_memory(sum(image.width * image.height for image in images))
        return BatchFeature(
            {
                # per image [num_tiles, 3, tile_size, tile_size]
                "pixel_values": tiles,
                # [num_images, 2] int64: width, height
                "image_sizes": torch.tensor([image.size for image in images]),
                # [num_images] int64: index into IMAGE_MODES
                "image_modes": torch.tensor([IMAGE_MODES.index(mode)] * len(images)),
            }
        )

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {
            "pixel_values": MultiModalFieldConfig.batched("image"),
            # Read as plain integers: no reason to visit the device.
            "image_sizes": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
            "image_modes": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
            "image_embeds": MultiModalFieldConfig.batched("image"),
        }

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        token_id = self.info.image_token_id
        mode = cast(ImageMode, hf_processor_mm_kwargs["image_mode"])
        assert mode in IMAGE_MODES, mode

        def placeholders(item: int) -> list[int]:
            images: ModalityDataItems = mm_items["image"]
            if isinstance(images, ImageEmbeddingItems):
                return [token_id] * images.get_feature_size(item)
            assert isinstance(images, ImageProcessorItems)
            width, height = images.get_image_size(item)
            count = num_visual_tokens(width, height, self.info.geometry, mode)
            return [token_id] * count

        return [
            PromptReplacement(
                modality="image", target=[token_id], replacement=placeholders
            )
        ]
