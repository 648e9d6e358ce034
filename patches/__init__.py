# SPDX-License-Identifier: Apache-2.0
"""Runtime patches of vLLM, one per file.

Each module has one function ``apply()``, which is idempotent, and a docstring
that says what is patched, why, what else is affected, and when the patch can
go. :func:`apply_all` is called once in every process by ``plugin.register``,
:func:`apply_for_worker` in those that compute.
They leave other models alone unless they say otherwise.
"""

from importlib import import_module
from multiprocessing import current_process

EVERYWHERE = (
    "cpu_model_runner",
    "cpu_primitives",
    "cpu_waiting",
    "denoising_metrics",
    "start_errors",
    "engine_processes",
)
FRONT_END = (
    "engine_arguments",
    "tokenizer_aliases",
    "request_bodies",
    "body_validation",
    "error_messages",
    "error_responses",
    "chat_tools",
    "media_errors",
    "media_connector",
    "image_uuids",
    "refused_images",
    "request_validation",
    "generating",
    "responses_start",
    "live_canvas",
    "default_sampling",
    "detokenize_ids",
    "abort_counting",
    "start_refusals",
    "graceful_shutdown",
)
"""They import vLLM's API server, which takes a second, and which a process that vLLM
started for an engine or a worker has no use for."""
WORKER = ("cpu_kernels", "worker_errors")
"""Applied by ``engine_processes`` where a worker of our models begins: what they import
is slow, and of use there only."""

ENGINE_PROCESSES = ("EngineCore", "VllmWorker")
"""How the names of those begin."""


def apply_all() -> None:
    """Apply every patch that this process needs; a second call changes nothing."""
    is_engine = current_process().name.startswith(ENGINE_PROCESSES)
    _apply(EVERYWHERE if is_engine else EVERYWHERE + FRONT_END)


def apply_for_worker() -> None:
    """Apply what a process needs that runs a model; a second call changes nothing."""
    _apply(WORKER)


def _apply(names: tuple[str, ...]) -> None:
    for name in names:
        import_module(f"{__name__}.{name}").apply()
