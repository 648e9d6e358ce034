# SPDX-License-Identifier: Apache-2.0
"""From tiles to visual embeddings: SigLIP tower, projector, anyres merge.

The tower is vLLM's SigLIP, cut as the official code cuts it: the last encoder
layer, the post-norm and the pooling head are gone, so its output is the feature
of layer -2. The checkpoint stores the trained tower without that last layer.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from vllm.model_executor.models.siglip import SiglipVisionModel
from vllm.model_executor.models.utils import maybe_prefix

from vllm_lladav.model.lladav.anyres import AnyresGeometry, merge_tiles
from vllm_lladav.model.lladav.config import LladavConfig
from vllm_lladav.model.lladav.image_modes import IMAGE_MODES

# Tiles that go through the tower at once: bounds its activations, whatever the
# number and the size of the images in a batch.
TILES_PER_FORWARD = 32

TOWER_PREFIX = "model.vision_tower.vision_tower."
PROJECTOR_PREFIX = "model.mm_projector."
NEWLINE_NAME = "model.image_newline"

# Official tensors that no feature depends on (the features are taken before).
_UNUSED = ("vision_model.post_layernorm.", "vision_model.head.")


def geometry_from_config(config: LladavConfig) -> AnyresGeometry:
    return AnyresGeometry(
        pinpoints=config.pinpoints,
        tile_size=config.tile_size,
        tile_grid=config.tile_grid,
        max_tiles=config.max_tiles,
    )


def weight_shapes(config: LladavConfig) -> dict[str, tuple[int, ...]]:
    """Official name -> shape of every tensor that `LladavVision` needs."""
    with torch.device("meta"):
        projector = build_projector(config)
    return {
        **{TOWER_PREFIX + name: shape for name, shape in _tower_shapes(config)},
        **{
            PROJECTOR_PREFIX + name: tuple(parameter.shape)
            for name, parameter in projector.named_parameters()
        },
        NEWLINE_NAME: (config.hidden_size,),
    }


def is_unused_weight(name: str) -> bool:
    """Whether an official vision tensor is rightly left in the file.

    They are the post-norm and the pooling head, behind the features.
    """
    return name.startswith(tuple(TOWER_PREFIX + part for part in _UNUSED))


def _tower_shapes(config: LladavConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    vision = config.vision_config
    hidden, inner = vision.hidden_size, vision.intermediate_size
    patch = config.tile_size // config.tile_grid
    embeddings = "vision_model.embeddings."
    yield embeddings + "patch_embedding.weight", (hidden, 3, patch, patch)
    yield embeddings + "patch_embedding.bias", (hidden,)
    yield embeddings + "position_embedding.weight", (config.tile_grid**2, hidden)
    linears = {
        **{f"self_attn.{n}_proj": (hidden, hidden) for n in ("q", "k", "v", "out")},
        "mlp.fc1": (inner, hidden),
        "mlp.fc2": (hidden, inner),
    }
    for layer in range(vision.num_hidden_layers - 1):
        prefix = f"vision_model.encoder.layers.{layer}."
        for norm in ("layer_norm1", "layer_norm2"):
            yield f"{prefix}{norm}.weight", (hidden,)
            yield f"{prefix}{norm}.bias", (hidden,)
        for name, shape in linears.items():
            yield f"{prefix}{name}.weight", shape
            yield f"{prefix}{name}.bias", shape[:1]


def build_projector(config: LladavConfig) -> nn.Module:
    """``[..., mm_hidden_size] -> [..., hidden_size]``, replicated on every rank."""
    layers: list[nn.Module] = [nn.Linear(config.mm_hidden_size, config.hidden_size)]
    for _ in range(1, config.projector_depth):
        layers += [nn.GELU(), nn.Linear(config.hidden_size, config.hidden_size)]
    return layers[0] if config.mm_projector_type == "linear" else nn.Sequential(*layers)


class LladavVision(nn.Module):
    """Tower, projector and newline embedding.

    The tower is tensor parallel, or replicated with ``mm_encoder_tp_mode=data``;
    projector and newline are replicated.
    """

    def __init__(self, config: LladavConfig, prefix: str = "") -> None:
        super().__init__()
        self.geometry = geometry_from_config(config)
        self.tower = SiglipVisionModel(
            config.vision_config,
            num_hidden_layers_override=config.vision_config.num_hidden_layers - 1,
            require_post_norm=False,
            use_head=False,
            prefix=maybe_prefix(prefix, "tower"),
        )
        self.projector = build_projector(config)
        self.image_newline = nn.Parameter(torch.empty(config.hidden_size))

    def encode_tiles(self, tiles: torch.Tensor) -> torch.Tensor:
        """``[n, 3, tile_size, tile_size]`` to ``[n, tile_tokens, hidden]``."""
        return self.projector(self.tower(tiles))

    def forward(
        self,
        pixel_values: Sequence[torch.Tensor] | torch.Tensor = (),
        image_sizes: Sequence[Sequence[int]] | torch.Tensor = (),
        image_modes: Sequence[int] | torch.Tensor = (),
        image_embeds: Sequence[torch.Tensor] | torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """Visual embeddings of a batch of images. The arguments are the fields of
        the multimodal processor.

        Args:
            pixel_values: per image ``[num_tiles, 3, tile_size, tile_size]``.
            image_sizes: per image (width, height) of the original, in pixels.
            image_modes: per image an index into `IMAGE_MODES`.
            image_embeds: per image ``[num_visual_tokens, hidden]``, instead of all
                the others (``--enable-mm-embeds``).

        Returns:
            Per image ``[num_visual_tokens, hidden]``.
        """
        if image_embeds is not None:
            return [embeds.to(self.image_newline) for embeds in image_embeds]
        tiles = [tile for image in pixel_values for tile in image]
        like = self.image_newline  # the dtype and device to compute in
        chunks = [
            self.encode_tiles(torch.stack(tiles[i : i + TILES_PER_FORWARD]).to(like))
            for i in range(0, len(tiles), TILES_PER_FORWARD)
        ]
        counts = [len(image) for image in pixel_values]
        per_image = torch.cat(chunks).split(counts)
        return [
            merge_tiles(
                features,
                (int(width), int(height)),
                self.image_newline,
                self.geometry,
                IMAGE_MODES[int(mode)],
            )
            for features, (width, height), mode in zip(
                per_image, image_sizes, image_modes, strict=True
            )
        ]
