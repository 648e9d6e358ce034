# SPDX-License-Identifier: Apache-2.0
"""A safetensors writer for bfloat16 and float32 numpy arrays.

The safetensors library cannot take bfloat16 from numpy, and the order of its header is
its own affair; here the bytes have to stay the same from release to release.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from vllm_lladav.tiny.weights import Float32Array

DType = Literal["bf16", "f32"]

ITEM_SIZE: Mapping[DType, int] = {"bf16": 2, "f32": 4}


def write_safetensors(
    path: Path, tensors: Mapping[str, Float32Array], dtype: DType
) -> None:
    """Write ``tensors`` to a file, sorted by name. For "bf16" their values must lie on
    the bfloat16 grid."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in sorted(tensors.items()):
        start, end = end, end + tensor.size * ITEM_SIZE[dtype]
        header[name] = {
            "dtype": dtype.upper(),
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for _, tensor in sorted(tensors.items()):
            file.write(_encode(tensor, dtype))


def _encode(tensor: Float32Array, dtype: DType) -> bytes:
    little_endian = np.ascontiguousarray(tensor, dtype="<f4")
    if dtype == "f32":
        return little_endian.tobytes()
    return (little_endian.view("<u4") >> 16).astype("<u2").tobytes()
