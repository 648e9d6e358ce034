# SPDX-License-Identifier: Apache-2.0
"""An engine in this process whose requests can be observed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_lladav.options.reading import ADDITIONAL_CONFIG_KEY

if TYPE_CHECKING:
    from vllm import LLM

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
