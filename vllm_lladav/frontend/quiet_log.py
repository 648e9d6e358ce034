# SPDX-License-Identifier: Apache-2.0
"""Warnings of vLLM that are about what this plugin sets itself."""

import logging
from typing import NamedTuple


class Line(NamedTuple):
    """
    Attributes:
        logger: by which it is logged.
        start: of its text.
        why: it tells our users nothing.
    """

    logger: str
    start: str
    why: str


LINES = (
    Line(
        "vllm.platforms.cpu",
        "Triton is not installed",
        "torch functions stand in for its kernels (patches/cpu_kernels.py)",
    ),
    Line(
        "vllm.platforms.cpu",
        "Reset SSM cache type",
        "these models have no state space layers",
    ),
    Line(
        "vllm.config.vllm",
        "Inductor compilation was disabled by user settings",
        "we disable it on a CPU (vllm_config.py)",
    ),
    Line(
        "vllm.utils.ompmultiprocessing",
        "VLLM_CPU_NUM_OF_RESERVED_CPU is less than",
        "who sets it means it, and nothing spins then (patches/cpu_waiting.py)",
    ),
    Line(
        "vllm.utils.torch_utils",
        "OMP_NUM_THREADS=",
        "vLLM has set it, and a step is computed by all of these threads",
    ),
    Line(
        "vllm.utils.torch_utils",
        "Reducing Torch threads",
        "they compute the steps, and stay (worker/one_process.py)",
    ),
    Line(
        "vllm.v1.worker.cpu_worker",
        "CPU backend doesn't allow to use",
        "vLLM itself asks for it where the engine core has the worker",
    ),
    Line(
        "vllm.config.scheduler",
        "Using custom scheduler class vllm_lladav.",
        "it is ours, and goes with the versions that pyproject.toml allows",
    ),
)


def quiet_log() -> None:
    """Leave these lines out of this process's log, which serves one of our models."""
    for name in {line.logger for line in LINES}:
        # A filter that is there already is not added again.
        logging.getLogger(name).addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    return not any(
        record.name == line.logger and text.startswith(line.start) for line in LINES
    )
