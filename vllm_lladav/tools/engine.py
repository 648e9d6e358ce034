# SPDX-License-Identifier: Apache-2.0
"""Starts ``vllm.LLM`` with this plugin's pruning, and reaches into it."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_lladav.options.reading import ADDITIONAL_CONFIG_KEY

if TYPE_CHECKING:
    from vllm import LLM

IN_PROCESS: Mapping[str, str] = {
    # An observer is called in the worker: it has to live in this process.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Binding threads to cores would bind the rest of this process, too.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}
"""Environment variables of an engine that runs in this process."""


def start_engine(
    model: str | Path, environment: Mapping[str, str] = IN_PROCESS, **options: Any
) -> "LLM":
    """Start an engine with ``--plugin pruning``; by default in this process.

    Args:
        model: name, directory or alias (``lladav``, ``lladav-tiny``, ...).
        environment: variables that are set while the engine starts. With none, engine
            core and workers run in processes of their own, as in a server.
        options: of ``vllm.LLM``; ``additional_config`` replaces the one set here.
    """
    from vllm import LLM, envs
    from vllm.utils.system_utils import set_env_var

    with ExitStack() as stack:
        for name, value in environment.items():
            stack.enter_context(set_env_var(name, value))
        plugin = {ADDITIONAL_CONFIG_KEY: {"plugin": "pruning"}}
        # vLLM may have cached its environment before we changed it.
        envs.disable_envs_cache()
        llm = LLM(str(model), **{"additional_config": plugin, **options})
    envs.disable_envs_cache()
    return llm


@contextmanager
def running_engine(
    model: str | Path, environment: Mapping[str, str] = IN_PROCESS, **options: Any
) -> Iterator["LLM"]:
    """The engine of :func:`start_engine`, shut down after the ``with`` block."""
    llm = start_engine(model, environment, **options)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def engine_core(llm: "LLM") -> Any:
    """vLLM's engine core (scheduler and executor) of an engine in this process.

    Raises:
        ValueError: if it is in another process.
    """
    return _reach(llm, "llm_engine.engine_core.engine_core")


def denoising_state(llm: "LLM") -> Any:
    """The worker's ``DenoisingState`` of an engine in this process, to be observed.

    Raises:
        ValueError: if the worker is in another process.
    """
    worker = _reach(engine_core(llm), "model_executor.driver_worker.worker")
    return worker.model_runner.model_state


def _reach(start: Any, path: str) -> Any:
    try:
        return attrgetter(path)(start)
    except AttributeError:
        raise ValueError(
            "requests can be observed in an engine with one worker in this process "
            "only (VLLM_ENABLE_V1_MULTIPROCESSING=0)"
        ) from None
