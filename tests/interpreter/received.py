# SPDX-License-Identifier: Apache-2.0
"""Compares the kernel with its twin, in Triton's interpreter.

    TRITON_INTERPRET=1 python -m tests.interpreter.hopper tests.interpreter.received

Silent if they agree.
"""

from typing import NamedTuple

import torch

from tests.interpreter.hopper import multiply_bfloat16
from vllm_lladav.kernels.received import NARROW_TILES, attention_received
from vllm_lladav.pruning import scores

OWN, PASSING = NARROW_TILES.own, NARROW_TILES.passing
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Shape(NamedTuple):
    rows: int
    keys: int
    columns: int
    heads: int
    kv_heads: int
    head_dim: int


SHAPES = (
    Shape(1, 1, 1, 1, 1, 8),
    Shape(1, 3 * PASSING + 1, 40, 2, 2, 32),
    Shape(PASSING, PASSING, PASSING, 2, 1, 16),
    Shape(OWN, OWN, OWN, 3, 1, 40),
    Shape(OWN + 1, 2 * OWN, OWN + 1, 2, 2, 128),
    Shape(2 * OWN - 1, 2 * OWN + 17, OWN + 3, 4, 2, 80),
    Shape(33, 101, 0, 2, 2, 24),
)


def check(shape: Shape, dtype: torch.dtype, spread: float, seed: int) -> None:
    """``spread``: of the logits. Query and key lie in one wider buffer, as they do
    where a layer computes them together."""
    generator = torch.Generator().manual_seed(seed)
    heads = shape.heads + shape.kv_heads
    wide = torch.randn(shape.keys, heads + 1, shape.head_dim, generator=generator)
    # Neighbours alike, and one token that all look at.
    wide[1::3] = wide[: len(wide[1::3])] + 0.01 * wide[1::3]
    wide[-1] *= 2
    buffer = wide.to(dtype)
    query = buffer[shape.keys - shape.rows :, : shape.heads]
    key = buffer[:, shape.heads : heads]
    columns = torch.randperm(shape.keys, generator=generator)[: shape.columns]
    scale = spread / shape.head_dim**0.5
    expected = scores.attention_received(query, key, scale, columns)
    received = attention_received(query, key, scale, columns)
    assert received.dtype == torch.float32
    # Weights range over many powers of ten; the small ones count as much in sums.
    torch.testing.assert_close(received, expected, rtol=2e-5, atol=1e-12)
    again = attention_received(query.contiguous(), key.contiguous(), scale, columns)
    assert torch.equal(received, again)


def main() -> None:
    multiply_bfloat16()
    for seed, shape in enumerate(SHAPES):
        for dtype in DTYPES:
            for spread in (0.1, 10.0):
                check(shape, dtype, spread, seed)
    every = torch.arange(70)
    query, key = torch.randn(2, 70, 4, 32, generator=torch.Generator().manual_seed(0))
    received = attention_received(query, key, 1.0, every)
    torch.testing.assert_close(received.sum(), torch.tensor(4.0), rtol=1e-5, atol=0)


if __name__ == "__main__":
    main()
