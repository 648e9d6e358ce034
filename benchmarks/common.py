# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share."""

import os
import platform
from typing import Any

import numpy as np
from PIL import Image


def machine() -> dict[str, Any]:
    """What figures were measured on."""
    import torch
    import vllm

    return {
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "vllm": vllm.__version__,
    }


def parse_size(text: str) -> tuple[int, int]:
    """``WIDTHxHEIGHT`` in pixels."""
    width, _, height = text.partition("x")
    return int(width), int(height)


def noise_image(size: tuple[int, int], seed: int) -> Image.Image:
    """A picture of (width, height) pixels that no cache has seen."""
    shape = (size[1], size[0], 3)
    values = np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)
    return Image.fromarray(values)
