# SPDX-License-Identifier: Apache-2.0
"""Runtime patches of vLLM, one per file.

Each module has one function ``apply()``, which is idempotent, and a docstring
that says what is patched, why, what else is affected, and when the patch can
go. :func:`apply_all` is called once in every process by ``plugin.register``.
They leave other models alone unless they say otherwise.
"""

from importlib import import_module

PATCHES = (
    "cpu_kernels",
    "cpu_primitives",
    "cpu_waiting",
    "engine_arguments",
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
    "denoising_metrics",
    "abort_counting",
    "start_errors",
    "graceful_shutdown",
    "engine_processes",
)


def apply_all() -> None:
    """Apply every patch; a second call changes nothing."""
    for name in PATCHES:
        import_module(f"{__name__}.{name}").apply()
