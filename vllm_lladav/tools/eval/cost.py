# SPDX-License-Identifier: Apache-2.0
"""What requests cost, and whether a server takes them: from a checkpoint's config."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Self

from PIL import Image
from vllm import SamplingParams
from vllm.model_executor.layers.vocab_parallel_embedding import pad_vocab_size
from vllm.tokenizers import get_tokenizer

from vllm_lladav.denoising.params import DenoisingParams
from vllm_lladav.denoising.plan import StepPlan
from vllm_lladav.frontend.request import Limits, resolve
from vllm_lladav.model.families import resolve_alias
from vllm_lladav.model.lladav.anyres import (
    AnyresGeometry,
    ImageMode,
    num_visual_tokens,
    tile_layout,
)
from vllm_lladav.model.lladav.config import LladavConfig, register_config
from vllm_lladav.model.lladav.family import LLADAV
from vllm_lladav.model.lladav.processing import ImageOptions
from vllm_lladav.model.lladav.vision import geometry_from_config
from vllm_lladav.model.shape import ModelShape
from vllm_lladav.options.server import ServerConfig
from vllm_lladav.tools.eval.questions import Question
from vllm_lladav.tools.eval.results import Answer
from vllm_lladav.tools.eval.settings import Setting
from vllm_lladav.tools.flops import planned_steps, request_flops

_UNLIMITED = 2**31


def resolved(
    setting: Setting, num_layers: int | None = None, max_num_seqs: int | None = None
) -> DenoisingParams:
    """What a server with the plugin ``pruning`` makes of a request.

    Args:
        num_layers: of the model; None if it is not known.
        max_num_seqs: of the server; None if it is not known.

    Raises:
        VLLMValidationError: for what the server would refuse.
    """
    params = SamplingParams(
        max_tokens=None, temperature=0.0, seed=0, extra_args=setting.xargs
    )
    server = ServerConfig(plugin="pruning", max_gen_length=_UNLIMITED)
    limits = Limits(
        max_prompt_len=_UNLIMITED,
        max_model_len=_UNLIMITED,
        kv_block_size=1,
        max_num_seqs=max_num_seqs or _UNLIMITED,
        num_kv_slots=None,
        num_layers=num_layers or _UNLIMITED,
    )
    resolve(params, 0, server, limits, _NoTokenizer(), end_token_id=0)
    assert params.extra_args is not None
    return DenoisingParams.from_values(params.extra_args["lladav"], params.seed)


class _NoTokenizer:
    """Settings have no texts."""

    def encode(self, text: str, **_: Any) -> list[int]:
        assert not text, text
        return []


@dataclass
class CostModel:
    """Floating-point operations of requests with one picture each.

    Attributes:
        shape: of the checkpoint.
        geometry: of its tiles.
        image_mode: of a single picture.
    """

    shape: ModelShape
    geometry: AnyresGeometry
    image_mode: ImageMode
    _known: dict[Any, int] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, model: str) -> Self:
        """Of a name, directory or alias. No weights are read.

        Raises:
            OSError: if it is not there.
            ValueError: if it is no LLaDA-V.
        """
        from transformers import AutoConfig

        name = resolve_alias(model)
        register_config()
        config = AutoConfig.from_pretrained(name)
        if not isinstance(config, LladavConfig):
            raise ValueError(f"{model} is no LLaDA-V checkpoint")
        vocab_rows = pad_vocab_size(len(get_tokenizer(name)))
        return cls(
            shape=LLADAV.shape(config, vocab_rows),
            geometry=geometry_from_config(config),
            image_mode=ImageOptions().resolve_mode(config, 1),
        )

    def prompt_bound(self, question: Question) -> int:
        """No fewer than the tokens of its prompt. A token has a character at least;
        the chat template's own text has fewer than 128 tokens."""
        with Image.open(question.image) as image:
            size = image.size
        visual = num_visual_tokens(*size, self.geometry, self.image_mode)
        return visual + len(question.text.encode()) + 128

    def num_tiles(self, size: tuple[int, int]) -> int:
        """Of a picture of (width, height) pixels."""
        if self.image_mode != "anyres":
            return 1
        columns, rows = tile_layout(size, self.geometry)
        return 1 + columns * rows

    def flops(self, setting: Setting, question: Question, answer: Answer) -> int:
        """Of the whole model for one request, its picture's tiles included."""
        params = _resolved(setting, self.shape.num_layers)
        steps = answer.masks
        if steps is None:
            steps = tuple(planned_steps(params, steps_by_block(params, answer)))
        num_tiles = self.num_tiles(_image_size(str(question.image)))
        key = (setting, steps, answer.prompt_len, answer.visual_tokens, num_tiles)
        if key not in self._known:
            plan = StepPlan(params, answer.prompt_len, (answer.visual_tokens,))
            found = request_flops(self.shape, plan, num_tiles, steps)
            self._known[key] = found.total
        return self._known[key]


def is_estimate(setting: Setting, answer: Answer) -> bool:
    """Whether :meth:`CostModel.flops` is not exact.

    Without having observed the steps, it is not known how many masks a step looked at
    once an end token was found, or with confidence decoding. Adaptive pruning decides
    in the worker how much it drops: what is counted is an upper bound.
    """
    params = _resolved(setting, None)
    if params.pruning is not None and params.pruning.is_adaptive:
        return True
    return answer.masks is None and (params.is_confident or answer.is_ended)


def steps_by_block(params: DenoisingParams, answer: Answer) -> tuple[int, ...]:
    """Steps that ran in each block, of the first ones, if they were not observed.

    With a fixed number of transfers every block takes its steps before the next one
    begins. With confidence decoding they are taken to be spread evenly over the blocks
    that were begun: up to the one with the end token.
    """
    if not params.is_confident:
        per_block = min(params.steps_per_block, params.block_length)
        full, rest = divmod(answer.steps, per_block)
        return (per_block,) * full + ((rest,) if rest else ())
    begun = params.num_blocks
    if answer.is_ended:
        begun = min(answer.num_tokens // params.block_length + 1, begun)
    begun = max(min(begun, answer.steps), 1)
    share, remainder = divmod(answer.steps, begun)
    return tuple(share + (block < remainder) for block in range(begun))


@lru_cache(maxsize=1024)
def _resolved(setting: Setting, num_layers: int | None) -> DenoisingParams:
    return resolved(setting, num_layers)


@lru_cache(maxsize=1 << 16)
def _image_size(path: str) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size
