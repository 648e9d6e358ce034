# SPDX-License-Identifier: Apache-2.0
"""What an inspection found: which visual tokens were kept, and their scores."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vllm_lladav.model.lladav.image_modes import ImageMode
from vllm_lladav.tools.inspect.patch_map import VisualToken


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
