# SPDX-License-Identifier: Apache-2.0
"""Recorded results of the official LLaDA-V code on the ``lladav-random`` checkpoint.

All of it was computed in float32 on a CPU. The pruned cases run the official layers
with FastV pruning on top. Files:

``cases.json``                one case per line
``tensors.npz``               the cases' arrays, named ``case/array``
``visual_token_counts.json``  tiles and visual tokens for many image sizes
``images/``                   the pictures of the cases
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

DIRECTORY = Path(__file__).parent

IMAGE_TOKEN = -200
"""Stands for one image in ``GoldenCase.input_ids``."""


@dataclass(frozen=True)
class GenerateArgs:
    """Arguments of the official ``generate``."""

    gen_length: int
    block_length: int
    steps: int
    cfg_scale: float = 0.0
    stopping_criteria: tuple[str, ...] = ()
    generation_suffix: str | None = None


@dataclass(frozen=True)
class DllmCacheArgs:
    """Settings of the official dLLM-Cache.

    ``tie_rule``: similarities closer than this to 1 count as equal and the lowest
    index wins; None leaves equal similarities to ``torch.topk``.
    """

    prompt_interval_steps: int
    gen_interval_steps: int
    transfer_ratio: float
    tie_rule: float | None


@dataclass(frozen=True)
class PruneArgs:
    """FastV pruning at step 1: drop ``ratio`` of the visual tokens after ``layer``."""

    ratio: float
    layer: int  # Counted from 1.
    queries: Literal["all", "gen"]  # Rows whose attention is averaged.


@dataclass(frozen=True)
class PruneResult:
    """How many visual tokens were dropped, and how close the decision was."""

    n_visual: int
    n_dropped: int
    n_kept: int
    score_gap_at_cut: float
    score_gap_rel: float


@dataclass(frozen=True)
class GoldenStep:
    """The positions that one denoising step selected, in the order of selection.

    Positions count from the start of the canvas; prompt positions are negative.
    A selected position that was no mask keeps its token, whatever ``tokens`` says.
    """

    k: int
    positions: tuple[int, ...]
    tokens: tuple[int, ...]
    confidence: tuple[float, ...]  # -inf: taken because k exceeds the candidates.
    was_mask: tuple[bool, ...]


@dataclass(frozen=True)
class FirstStep:
    """Logits of step 1: of canvas position 0 (``top20_*`` to ``banned_*``) and of
    every canvas position (``gen_*``). Only ``banned_logits_before`` is from before the
    ban."""

    top20_ids: tuple[int, ...]
    top20_logits: tuple[float, ...]
    logsumexp: float
    banned_ids: tuple[int, ...]
    banned_logits_before: tuple[float, ...]
    gen_argmax: tuple[int, ...]
    gen_top1_logit: tuple[float, ...]
    gen_top2_logit: tuple[float, ...]
    gen_confidence: tuple[float, ...]


@dataclass(frozen=True)
class GoldenCase:
    """One request and everything that was recorded of it."""

    name: str
    note: str

    # The request.
    messages: tuple[str, ...]  # User turns; "<image>" stands for a picture.
    prompt: str  # After the chat template.
    input_ids: tuple[int, ...]  # IMAGE_TOKEN stands for a picture.
    generate: GenerateArgs

    # What was generated.
    output_ids: tuple[int, ...]  # Cut at the stop; the suffix is included.
    output_text: str
    generated_ids_including_after_stop: tuple[int, ...]  # The whole canvas.
    prompt_len: int  # Merged: visual tokens counted, truncation applied.
    n_forward: int
    steps: tuple[GoldenStep, ...]
    step1: FirstStep
    margins: Mapping[str, float]  # How close the closest decisions were.

    # Images, in the order of their placeholders.
    images: tuple[str, ...] = ()
    image_mode: Literal["anyres", "pad_list", "pad_stacked"] | None = None
    visual_tokens: tuple[int, ...] = ()
    visual_spans: tuple[tuple[int, int], ...] = ()  # [start, end), not truncated.

    # Departures from the defaults.
    head_gains: Mapping[int, float] = field(default_factory=dict)
    config_overrides: Mapping[str, Any] = field(default_factory=dict)
    dllm_cache: DllmCacheArgs | None = None
    prune: PruneArgs | None = None
    prune_result: PruneResult | None = None

    @property
    def image_paths(self) -> tuple[Path, ...]:
        return tuple(DIRECTORY / "images" / name for name in self.images)

    @cached_property
    def tensors(self) -> Mapping[str, npt.NDArray[Any]]:
        """The recorded arrays, read on first use.

        Every case:

        ``embeds_row_sum``, ``embeds_row_l2``   [prompt_len], of the merged embeddings

        Cases with images:

        ``embeds_rows``, ``embeds_rows_index``  some merged embeddings and their rows
        ``pixel_tile_mean``, ``.._absmean``     [tiles, 3], of the preprocessed pixels
        ``pixel_sample_stride16_offset3``       [tiles, 3, 24, 24], every 16th pixel

        Some cases:

        ``vision_rows``, ``vision_rows_index``  some tower features of each tile
        ``step1_layer_hidden_lastprompt_firstgen_last``
                                                [layers, 3, hidden], three positions
        ``prune_score``, ``prune_kept_visual``  [n_visual], and kept indices in order
        """
        prefix = f"{self.name}/"
        with np.load(DIRECTORY / "tensors.npz") as archive:
            return {
                key.removeprefix(prefix): archive[key]
                for key in archive.files
                if key.startswith(prefix)
            }


class VisualTokenCount(NamedTuple):
    """Tiling of one image size under ``anyres_max_4``.

    ``unpadded`` and ``final`` are rows and columns of the joined tile grid, without
    padding and after shrinking; ``tiles`` is columns and rows.
    """

    width: int
    height: int
    tiles: tuple[int, int]
    unpadded: tuple[int, int]
    final: tuple[int, int]
    tokens: int


def is_prompt_cache(case: GoldenCase) -> bool:
    """Whether the case runs without dLLM-Cache or with one that never freezes canvas
    positions (all of them are transferred anew in every step)."""
    return case.dllm_cache is None or case.dllm_cache.transfer_ratio == 1.0


def cache_args(case: GoldenCase) -> dict[str, Any]:
    """The case's prompt cache as request arguments of the engine."""
    if case.dllm_cache is None:
        return {"cache": "none"}
    assert is_prompt_cache(case)
    interval = case.dllm_cache.prompt_interval_steps
    return {"cache": "prompt", "refresh_interval": interval}


def stop_args(case: GoldenCase) -> dict[str, Any]:
    """How the official code looks for the case's stops."""
    return {"stop_search": "tokens"} if case.generate.stopping_criteria else {}


def pruning_args(case: GoldenCase) -> dict[str, Any]:
    """The case's pruning as request arguments of the engine; off if it has none."""
    if case.prune is None:
        return {"prune_rate": 0}
    queries = "answer" if case.prune.queries == "gen" else case.prune.queries
    return {
        "prune_rate": case.prune.ratio,
        "prune_layer": case.prune.layer,
        "prune_queries": queries,
    }


@cache
def load_cases() -> dict[str, GoldenCase]:
    """Return all cases by name."""
    records = json.loads((DIRECTORY / "cases.json").read_text(encoding="utf-8"))
    return {record["name"]: _case(record) for record in records}


@cache
def load_visual_token_counts() -> tuple[VisualTokenCount, ...]:
    """Return the recorded counts; the first sizes are the edge cases."""
    path = DIRECTORY / "visual_token_counts.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return tuple(VisualTokenCount(*_frozen(row)) for row in rows)


def _case(record: dict[str, Any]) -> GoldenCase:
    fields = {key: _frozen(value) for key, value in record.items()}
    fields["generate"] = GenerateArgs(**_fields(record["generate"]))
    fields["steps"] = _steps(record["steps"])
    fields["step1"] = FirstStep(**_fields(record["step1"]))
    fields["head_gains"] = {
        int(token_id): gain for token_id, gain in record.get("head_gains", {}).items()
    }
    for key, type_ in (
        ("dllm_cache", DllmCacheArgs),
        ("prune", PruneArgs),
        ("prune_result", PruneResult),
    ):
        if key in record:
            fields[key] = type_(**_fields(record[key]))
    return GoldenCase(**fields)


def _steps(columns: dict[str, list[Any]]) -> tuple[GoldenStep, ...]:
    """Turn columns (one entry per step) into steps; a null confidence means -inf."""
    confidence = [
        [-np.inf if value is None else value for value in row]
        for row in columns["confidence"]
    ]
    columns = {**columns, "confidence": confidence}
    return tuple(
        GoldenStep(**dict(zip(columns, _frozen(list(row)), strict=True)))
        for row in zip(*columns.values(), strict=True)
    )


def _fields(record: dict[str, Any]) -> dict[str, Any]:
    return {key: _frozen(value) for key, value in record.items()}


def _frozen(value: Any) -> Any:
    """Turn lists into tuples, at every depth."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
