# SPDX-License-Identifier: Apache-2.0
"""Pruning of one request, watched in an engine of this process: which visual tokens
were kept, and their scores."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vllm_lladav.model.lladav.image_modes import ImageMode
from vllm_lladav.model.lladav.patch_map import VisualToken, map_visual_tokens
from vllm_lladav.tools.engine import denoising_state, running_engine
from vllm_lladav.tools.inspect.pictures import read_picture

if TYPE_CHECKING:
    from vllm import LLM

    from vllm_lladav.worker.scoring import Pruned


@dataclass(frozen=True)
class StageReport:
    """One stage of pruning, over all images of the request.

    Attributes:
        step, layer: denoising step and decoder layer, counted from 1.
        num_seen: visual tokens before it.
        num_kept: visual tokens after it.
    """

    step: int
    layer: int
    num_seen: int
    num_kept: int


@dataclass(frozen=True)
class ImageInspection:
    """One image of the request.

    Attributes:
        picture: as the model took it, RGB.
        mode: how it was tiled.
        tokens: ``n`` visual tokens and where in the picture they look.
        scores: ``[n]``, float32: each token's in the last stage that scored it; nan
            where none did.
        kept: ``[n]``, bool: kept by all stages.
    """

    picture: Image.Image
    mode: ImageMode
    tokens: tuple[VisualToken, ...]
    scores: np.ndarray
    kept: np.ndarray


@dataclass(frozen=True)
class Inspection:
    """The outcome of a request that was inspected.

    Attributes:
        answer: text of the answer.
        images: in the order of the prompt.
        stages: in the order in which they ran; empty if nothing was pruned.
    """

    answer: str
    images: tuple[ImageInspection, ...]
    stages: tuple[StageReport, ...]

    def describe_stages(self) -> list[str]:
        """A line for every stage, for people."""
        return [
            f"step {stage.step}, layer {stage.layer}: kept {stage.num_kept} of "
            f"{stage.num_seen} visual tokens"
            for stage in self.stages
        ] or ["nothing was pruned"]


def inspect_pruning(
    model: "str | Path | LLM",
    images: Sequence[Image.Image | str | Path],
    prompt: str,
    *,
    image_mode: str = "auto",
    seed: int | None = None,
    **options: Any,
) -> Inspection:
    """Ask about images, and find out which visual tokens pruning keeps.

    Args:
        model: name, directory or alias of a model, which is loaded and shut down
            again, or an idle engine in this process
            (:func:`~vllm_lladav.tools.engine.start_engine`).
        images: at least one; they stand before the prompt.
        prompt: the user's message.
        image_mode: ``auto``, ``anyres``, ``pad_stacked`` or ``pad_list``.
        seed: of what is random in the request.
        options: ``gen_length``, ``steps``, ``prune_rate``, ... as in ``vllm_xargs``;
            None is "not sent".

    Raises:
        VLLMValidationError: for values that the engine refuses.
        ValueError: for images that cannot be read or tiled.
        OSError: for files that are not there.
    """
    if not images:
        raise ValueError("at least one image is needed")
    pictures = [read_picture(image) for image in images]
    with _running(model) as llm:
        mode, tokens = _map(llm, pictures, image_mode)
        with _observed(llm) as stages:
            answer = _ask(llm, pictures, prompt, mode, seed=seed, extra_args=options)
        arrays = [
            (s.scores.float().cpu().numpy(), s.kept.cpu().numpy()) for s in stages
        ]
    *ends, num_visual = np.cumsum([len(image) for image in tokens])
    scores, kept = (np.split(v, ends) for v in follow_stages(num_visual, arrays))
    return Inspection(
        answer=answer,
        images=tuple(
            map(ImageInspection, pictures, repeat(mode), tokens, scores, kept)
        ),
        stages=tuple(
            StageReport(s.stage.step, s.stage.layer, len(s.scores), len(s.kept))
            for s in stages
        ),
    )


def _running(model: "str | Path | LLM") -> "AbstractContextManager[LLM]":
    """An engine that is shut down afterwards, or the one that is given."""
    if not isinstance(model, str | Path):
        return nullcontext(model)
    # For a single request, capturing graphs takes longer than it saves.
    return running_engine(model, max_num_seqs=1, enforce_eager=True)


def _map(
    llm: "LLM", pictures: list[Image.Image], image_mode: str
) -> tuple[ImageMode, list[tuple[VisualToken, ...]]]:
    """How the engine tiles pictures, and the visual tokens of each."""
    from vllm_lladav.model.lladav.processing import ImageOptions
    from vllm_lladav.model.lladav.vision import geometry_from_config

    model_config = llm.llm_engine.model_config
    config: Any = model_config.hf_config
    server_kwargs = model_config.get_multimodal_config().mm_processor_kwargs or {}
    kwargs = {**server_kwargs, "image_mode": image_mode}
    mode = ImageOptions.from_kwargs(kwargs).resolve_mode(config, len(pictures))
    geometry = geometry_from_config(config)
    return mode, [map_visual_tokens(p.size, geometry, mode) for p in pictures]


def _ask(
    llm: "LLM", pictures: list[Image.Image], prompt: str, mode: str, **sampling: Any
) -> str:
    """The text of the answer."""
    from vllm import SamplingParams

    content = [{"type": "image_pil", "image_pil": picture} for picture in pictures]
    messages: list[Any] = [
        {"role": "user", "content": [*content, {"type": "text", "text": prompt}]}
    ]
    # Without max_tokens the canvas is as long as gen_length says.
    params = SamplingParams(max_tokens=None, temperature=0.0, **sampling)
    (output,) = llm.chat(
        messages, params, use_tqdm=False, mm_processor_kwargs={"image_mode": mode}
    )
    return output.outputs[0].text


@contextmanager
def _observed(llm: "LLM") -> Iterator[list["Pruned"]]:
    """What the stages of the one request that runs meanwhile do, in order."""
    state = denoising_state(llm)
    if llm.llm_engine.has_unfinished_requests():
        raise ValueError("the engine must be idle to inspect a request")
    stages: list[Pruned] = []
    before = state.on_pruned
    state.on_pruned = lambda _, pruned: stages.append(pruned)
    try:
        yield stages
    finally:
        state.on_pruned = before


def follow_stages(
    num_visual: int, stages: Iterable[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of all visual tokens, and which of them all stages kept.

    A stage counts the tokens that the stages before it left; ``stages`` are pairs of
    scores (``[m]``) and the indices that it keeps (``[k]``).

    Returns:
        ``scores`` (``[num_visual]``, float32, nan where never scored) and ``kept``
        (``[num_visual]``, bool).
    """
    scores = np.full(num_visual, np.nan, np.float32)
    left = np.arange(num_visual)
    for stage_scores, stage_kept in stages:
        assert len(stage_scores) == len(left), (len(stage_scores), len(left))
        scores[left] = stage_scores
        left = left[stage_kept]
    kept = np.zeros(num_visual, bool)
    kept[left] = True
    return scores, kept
