# SPDX-License-Identifier: Apache-2.0
"""Runs one request with pruning in this process and watches what is kept."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from vllm_lladav.config import ADDITIONAL_CONFIG_KEY
from vllm_lladav.inspect.patch_map import map_visual_tokens
from vllm_lladav.inspect.pictures import read_picture
from vllm_lladav.inspect.result import (
    ImageInspection,
    Inspection,
    StageReport,
    follow_stages,
    split_by_image,
)

if TYPE_CHECKING:
    from vllm import LLM

    from vllm_lladav.pruning.prune_pass import Pruned

_IN_PROCESS = {
    # The observer is called in the worker: it has to live here.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Binding threads to cores would bind the rest of this process, too.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


def start_engine(model: str | Path, **options: Any) -> "LLM":
    """An engine whose requests can be observed; by default for one at a time.

    Args:
        model: name, directory or alias (``lladav``, ``lladav-tiny``, ...).
        options: of ``vllm.LLM``, over the ones that are set here.
    """
    with _environment(_IN_PROCESS):
        from vllm import LLM, envs

        defaults: dict[str, Any] = {
            "max_num_seqs": 1,
            # For a single request, capturing graphs takes longer than it saves.
            "enforce_eager": True,
            "additional_config": {ADDITIONAL_CONFIG_KEY: {"plugin": "pruning"}},
        }
        # vLLM may have cached its environment before we changed it.
        envs.disable_envs_cache()
        llm = LLM(str(model), **{**defaults, **options})
    envs.disable_envs_cache()
    return llm


def inspect_pruning(
    model: "str | Path | LLM",
    images: Sequence[Image.Image | str | Path],
    prompt: str,
    *,
    image_mode: str = "auto",
    gen_length: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    **pruning: Any,
) -> Inspection:
    """Ask about images, and find out which visual tokens pruning keeps.

    Args:
        model: name, directory or alias of a model, which is loaded and shut down
            again, or an idle engine as :func:`start_engine` makes it.
        images: at least one; they stand before the prompt.
        prompt: the user's message.
        image_mode: ``auto``, ``anyres``, ``pad_stacked`` or ``pad_list``.
        gen_length, steps, seed: of the request; the server's defaults if None.
        pruning: ``prune_rate``, ``prune_layer``, ``prune_stages``, ``prune_policy``,
            ``prune_queries``, ... as in ``vllm_xargs``; None is "not sent".

    Raises:
        VLLMValidationError: for values that the engine refuses.
        ValueError: for images that cannot be read or tiled.
        OSError: for files that are not there.
    """
    if not images:
        raise ValueError("at least one image is needed")
    pictures = [read_picture(image) for image in images]
    request_args = {"gen_length": gen_length, "steps": steps, **pruning}
    with _running(model) as llm:
        return _inspect(llm, pictures, prompt, image_mode, seed, request_args)


@contextmanager
def _running(model: "str | Path | LLM") -> "Iterator[LLM]":
    """An engine that is shut down afterwards, or the one that is given."""
    if not isinstance(model, str | Path):
        yield model
        return
    llm = start_engine(model)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def _inspect(
    llm: "LLM",
    pictures: list[Image.Image],
    prompt: str,
    image_mode: str,
    seed: int | None,
    request_args: dict[str, Any],
) -> Inspection:
    from vllm import SamplingParams

    from vllm_lladav.model.processing import ImageOptions
    from vllm_lladav.model.vision import geometry_from_config

    model_config = llm.llm_engine.model_config
    config: Any = model_config.hf_config
    server_kwargs = model_config.get_multimodal_config().mm_processor_kwargs or {}
    kwargs = {**server_kwargs, "image_mode": image_mode}
    mode = ImageOptions.from_kwargs(kwargs).resolve_mode(config, len(pictures))
    geometry = geometry_from_config(config)
    tokens = [map_visual_tokens(p.size, geometry, mode) for p in pictures]

    content = [{"type": "image_pil", "image_pil": picture} for picture in pictures]
    messages: list[Any] = [
        {"role": "user", "content": [*content, {"type": "text", "text": prompt}]}
    ]
    sampling = SamplingParams(
        # None: the canvas is as long as gen_length says.
        max_tokens=None,
        temperature=0.0,
        seed=seed,
        extra_args=request_args,
    )
    with _observed(llm) as stages:
        (output,) = llm.chat(
            messages,
            sampling,
            use_tqdm=False,
            mm_processor_kwargs={"image_mode": mode},
        )

    lengths = [len(image) for image in tokens]
    arrays = [
        (stage.scores.float().cpu().numpy(), stage.kept.cpu().numpy())
        for stage in stages
    ]
    scores, kept = follow_stages(sum(lengths), arrays)
    return Inspection(
        answer=output.outputs[0].text,
        images=tuple(
            ImageInspection(picture, mode, picture_tokens, its_scores, its_kept)
            for picture, picture_tokens, its_scores, its_kept in zip(
                pictures,
                tokens,
                split_by_image(scores, lengths),
                split_by_image(kept, lengths),
                strict=True,
            )
        ),
        stages=tuple(
            StageReport(
                stage.stage.step, stage.stage.layer, len(stage.scores), len(stage.kept)
            )
            for stage in stages
        ),
    )


@contextmanager
def _observed(llm: "LLM") -> Iterator[list["Pruned"]]:
    """What the stages of the one request that runs meanwhile do, in order."""
    state = denoising_state(llm)
    if llm.llm_engine.has_unfinished_requests():
        raise ValueError("the engine must be idle to inspect a request")
    stages: list[Pruned] = []

    def observe(_: str, pruned: "Pruned") -> None:
        stages.append(pruned)

    before, state.on_pruned = state.on_pruned, observe
    try:
        yield stages
    finally:
        state.on_pruned = before


def denoising_state(llm: "LLM") -> Any:
    """The worker's state of an engine in this process, to be observed.

    Raises:
        ValueError: if the worker is in another process.
    """
    try:
        core: Any = llm.llm_engine.engine_core.engine_core  # type: ignore[attr-defined]
        worker = core.model_executor.driver_worker.worker
    except AttributeError:
        raise ValueError(
            "requests can be observed in an engine with one worker in this process "
            "only (VLLM_ENABLE_V1_MULTIPROCESSING=0)"
        ) from None
    return worker.model_runner.model_state


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
