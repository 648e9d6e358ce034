# SPDX-License-Identifier: Apache-2.0
"""The Hugging Face config of the official LLaDA-V checkpoint, read as it is.

``config.json`` of the checkpoint is one flat dictionary: a Llama-like decoder
next to LLaVA's ``mm_*`` keys. Everything that the checkpoint states is taken
from it; the few values that the official code keeps in Python are class-level
defaults here, and a config file that carries them wins.
"""

import ast
import json
import re
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, cast

from transformers import AutoConfig, PretrainedConfig, SiglipVisionConfig

MODEL_TYPE = "llava_llada"

# Geometry of google/siglip2-so400m-patch14-384, the tower of the released
# checkpoint, whose config names it by its hub name and does not ship its config.
SO400M_PATCH14_384: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 384,
    "patch_size": 14,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "attention_dropout": 0.0,
}
_SO400M_NAME = re.compile(r"(^|/)siglip2?-so400m-patch14-384$")

_ANYRES = re.compile(r"anyres(_max_([1-9]\d*))?")
_PROJECTOR = re.compile(r"mlp([1-9]\d*)x_gelu")
_PINPOINT_RANGE = re.compile(r"\((\d+)x(\d+)\)")


class LladavConfig(PretrainedConfig):
    """Config of ``LlavaLLaDAModelLM`` (``model_type: llava_llada``).

    The decoder's sizes are top-level attributes, so the text config that vLLM
    asks for is the config itself. ``vision_config`` is the tower named by
    ``mm_vision_tower`` (see `resolve_vision_config`). Keys that are no field are
    kept as plain attributes.
    """

    model_type = MODEL_TYPE

    vocab_size: int = 126464
    hidden_size: int = 4096
    intermediate_size: int = 12288
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 0  # as attention heads
    head_dim: int = 0  # follows from hidden size and heads
    hidden_act: str = "silu"
    max_position_embeddings: int = 16384
    rms_norm_eps: float = 1e-5
    rope_parameters: dict[str, Any] = field(default_factory=dict)
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    tokenizer_model_max_length: int | None = None
    image_aspect_ratio: str = "anyres_max_4"
    image_grid_pinpoints: list[list[int]] | str = "(1x1),...,(6x6)"
    mm_vision_tower: str = "google/siglip2-so400m-patch14-384"
    mm_vision_select_layer: int = -2
    mm_vision_select_feature: str = "patch"
    mm_projector_type: str = "mlp2x_gelu"
    mm_patch_merge_type: str = "spatial_unpad"
    mm_hidden_size: int = 0  # the tower's
    mm_resampler_type: str | None = None
    # Left to code by the official config.json; `tokenizer.json` agrees.
    mask_token_id: int = 126336
    banned_token_ids: Sequence[int] = (126081, 126080, 126346, 126347)
    eot_token_id: int = 126348

    def __post_init__(self, **kwargs: Any) -> None:
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        self.banned_token_ids = list(self.banned_token_ids)
        # transformers 5 reads RoPE from `rope_parameters`; the checkpoint still
        # spells it `rope_theta` and `rope_scaling`.
        scaling = kwargs.pop("rope_scaling", None) or {}
        theta = kwargs.pop("rope_theta", 500000.0)
        self.rope_parameters = self.rope_parameters or {
            "rope_type": "default",
            **scaling,
            "rope_theta": theta,
        }
        # The released config names Llama 3's <bos>, which this vocabulary does
        # not have. The tokenizer knows the right one.
        if (kwargs.get("bos_token_id") or 0) >= self.vocab_size:
            kwargs["bos_token_id"] = None
        tower = kwargs.pop("vision_config", None)
        super().__post_init__(**kwargs)

        if tower is None:
            tower = resolve_vision_config(self.mm_vision_tower, self._name_or_path)
        elif isinstance(tower, dict):
            tower = SiglipVisionConfig(**tower)
        self.vision_config: SiglipVisionConfig = tower
        self.mm_hidden_size = self.mm_hidden_size or self.vision_config.hidden_size
        self.validate()  # As transformers does for configs with @strict.

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """As inherited, and remember where the checkpoint is: the tower's
        directory is relative to it."""
        found, rest = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        found.setdefault("name_or_path", str(pretrained_model_name_or_path))
        return found, rest

    @property
    def rope_theta(self) -> float:
        return self.rope_parameters["rope_theta"]

    @rope_theta.setter
    def rope_theta(self, value: float) -> None:
        self.rope_parameters["rope_theta"] = value

    @property
    def tile_size(self) -> int:
        """Side of a tile in pixels (384)."""
        return _side(self.vision_config.image_size)

    @property
    def tile_grid(self) -> int:
        """Side of a tile in visual tokens (27)."""
        return self.tile_size // _side(self.vision_config.patch_size)

    @property
    def max_tiles(self) -> int | None:
        """N of ``anyres_max_N``; None for plain ``anyres`` (never shrunk)."""
        match = _ANYRES.fullmatch(self.image_aspect_ratio)
        return int(match[2]) if match and match[2] else None

    @property
    def uses_anyres(self) -> bool:
        return _ANYRES.fullmatch(self.image_aspect_ratio) is not None

    @property
    def projector_depth(self) -> int:
        """Linear layers of the projector; 0 if its type is not known."""
        if self.mm_projector_type == "linear":
            return 1
        match = _PROJECTOR.fullmatch(self.mm_projector_type)
        return int(match[1]) if match else 0

    @property
    def pinpoints(self) -> tuple[tuple[int, int], ...]:
        """Candidate (width, height) canvases in pixels, in the checkpoint's order."""
        return parse_pinpoints(self.image_grid_pinpoints, self.tile_size)


def _side(size: int | Sequence[int]) -> int:
    """Side of a square that a tower's config gives as a number or a pair."""
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ValueError(
            f"LLaDA-V config: the vision tower's size {size!r} is not supported; "
            "allowed: squares"
        )
    return sides.pop()


def parse_pinpoints(
    value: Sequence[Sequence[int]] | str, tile_size: int
) -> tuple[tuple[int, int], ...]:
    """Read ``image_grid_pinpoints``: a list of (width, height) in pixels, the
    text of such a list, or LLaVA's range ``"(1x1),...,(6x6)"`` counted in tiles.
    """
    if isinstance(value, str) and "x" in value:
        corners = [(int(w), int(h)) for w, h in _PINPOINT_RANGE.findall(value)]
        if not corners:
            raise ValueError(
                f"image_grid_pinpoints={value!r} is not a range such as "
                "'(1x1),...,(6x6)'"
            )
        (w0, h0), (w1, h1) = corners[0], corners[-1]
        return tuple(
            (w * tile_size, h * tile_size)
            for w in range(w0, w1 + 1)
            for h in range(h0, h1 + 1)
        )
    if isinstance(value, str):
        value = cast(Sequence[Sequence[int]], ast.literal_eval(value))
    return tuple((int(w), int(h)) for w, h in value)


def resolve_vision_config(tower: str, checkpoint: str) -> SiglipVisionConfig:
    """Geometry of the vision tower that ``mm_vision_tower`` names.

    A directory with a ``config.json``, absolute or inside the checkpoint, is
    read. Otherwise the name is a hub name, and the only one whose geometry is
    known is the released tower's, `SO400M_PATCH14_384`. The tower's own weights
    are never read: the checkpoint carries the trained ones.

    Raises:
        ValueError: if neither applies.
    """
    for path in (Path(checkpoint) / tower, Path(tower)):
        config_file = path / "config.json"
        if tower and config_file.is_file():
            found = json.loads(config_file.read_text(encoding="utf-8"))
            geometry = dict(found.get("vision_config", found))
            geometry.pop("model_type", None)
            # Hub configs leave out values that equal SigLIP's own defaults,
            # which are the defaults of SiglipVisionConfig.
            return SiglipVisionConfig(**geometry)
    if not _SO400M_NAME.search(tower.rstrip("/")):
        raise ValueError(
            f"LLaDA-V config: mm_vision_tower={tower!r} is not supported; allowed: "
            "a directory with a SigLIP config.json, or a hub name ending in "
            "siglip-so400m-patch14-384 or siglip2-so400m-patch14-384"
        )
    return SiglipVisionConfig(**SO400M_PATCH14_384)


def register_config() -> None:
    """Let `AutoConfig` (and so vLLM, tokenizers and processors) read the checkpoint.

    Idempotent. Call it in every process, before the first config is loaded.
    """
    AutoConfig.register(MODEL_TYPE, LladavConfig, exist_ok=True)
