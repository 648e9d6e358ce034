# SPDX-License-Identifier: Apache-2.0
"""The machine's figures for the capacity model, measured where the model runs.

The functions that take a ``worker`` are sent there (``LLM.collective_rpc``), so that
they have the threads and the cores of the engine.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
from engine import ask_without_images

from vllm_lladav.tools.capacity.machine import Machine

PARTS = ("decoder", "head", "vision")
"""What the timers tell apart. ``head`` includes all that is done to logits."""

COPY_BYTES = 256 << 20
GEMM_ROWS = 2048
PROMPT_TOKENS = 32
"""Of the requests that show the overhead: too few for arithmetic to matter."""


def install_timers(worker: Any) -> None:
    """In the worker: add up the seconds spent in each of `PARTS`."""
    import time

    from vllm_lladav.worker.predictor import Predictor

    model = worker.get_model()
    model.seconds = dict.fromkeys(("decoder", "head", "vision"), 0.0)

    def timed(function: Any, part: str) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            model.seconds[part] += time.perf_counter() - start
            return result

        return wrapper

    model.forward = timed(model.forward, "decoder")
    model.embed_multimodal = timed(model.embed_multimodal, "vision")
    Predictor._predict_tile = timed(  # type: ignore[method-assign]
        Predictor._predict_tile, "head"
    )


def take_seconds(worker: Any) -> dict[str, float]:
    """In the worker: seconds in each part since the last call."""
    model = worker.get_model()
    seconds = dict(model.seconds)
    model.seconds.update(dict.fromkeys(seconds, 0.0))
    return seconds


def measure_peak(worker: Any) -> float:
    """In the worker: operations per second of the decoder's linear layers, for as many
    rows as a step of one request with an image has."""
    import torch
    from torch.nn.functional import linear

    config = worker.get_model().config
    hidden, inner = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    shapes = [  # (outputs, inputs), as vLLM fuses them.
        (queries + 2 * keys, hidden),
        (hidden, queries),
        (2 * inner, hidden),
        (hidden, inner),
    ]
    dtype = worker.get_model().vision.image_newline.dtype
    operations = seconds = 0.0
    for outputs, inputs in shapes:
        rows = torch.randn(GEMM_ROWS, inputs, dtype=dtype)
        weight = torch.randn(outputs, inputs, dtype=dtype)
        seconds += median_seconds(lambda r=rows, w=weight: linear(r, w))
        operations += 2 * GEMM_ROWS * outputs * inputs
    return operations / seconds


def measure_bandwidth(worker: Any) -> float:
    """In the worker: bytes per second that a copy reads and writes."""
    import torch

    source = torch.ones(COPY_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / median_seconds(lambda: target.copy_(source))


def median_seconds(function: Callable[[], Any], repeats: int = 7) -> float:
    """Of calls after a first one that warms up."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def measure_overhead(llm: Any, counts: tuple[int, ...] = (1, 8)) -> tuple[float, float]:
    """Seconds of a step outside of the model and its logits: what does not depend on
    the number of requests, and what each one adds. The timers must be installed."""
    overheads = []
    for count in counts:
        _rest_of_a_step(llm, count)
        overheads.append(
            statistics.median(_rest_of_a_step(llm, count) for _ in range(5))
        )
    slope, fixed = np.polyfit(counts, overheads, 1)
    return max(float(fixed), 0.0), max(float(slope), 0.0)


def _rest_of_a_step(llm: Any, count: int) -> float:
    steps = 16
    llm.collective_rpc(take_seconds)
    run = ask_without_images(
        llm, count, PROMPT_TOKENS, gen_length=steps, block_length=steps, steps=steps
    )
    (seconds,) = llm.collective_rpc(take_seconds)
    return (run.wall - sum(seconds.values())) / steps


class Calibration:
    """Figures of an engine's machine, which may be busier at times: `rates` is to be
    called now and then, and the median counts. Installs the timers."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        llm.collective_rpc(install_timers)
        self.peaks: list[float] = []
        self.bandwidths: list[float] = []
        self.overheads = measure_overhead(llm)

    def rates(self) -> None:
        """Measure once more."""
        self.peaks += self.llm.collective_rpc(measure_peak)
        self.bandwidths += self.llm.collective_rpc(measure_bandwidth)

    def machine(self) -> Machine:
        """The rates that are reached: its shares are 1."""
        overhead, request_overhead = self.overheads
        return Machine(
            memory=psutil.virtual_memory().total,
            peak=statistics.median(self.peaks),
            bandwidth=statistics.median(self.bandwidths),
            share=1.0,
            bandwidth_share=1.0,
            overhead=overhead,
            request_overhead=request_overhead,
        )
