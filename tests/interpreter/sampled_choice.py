# SPDX-License-Identifier: Apache-2.0
"""Compares the kernel with its twin, in Triton's interpreter.

    TRITON_INTERPRET=1 python -m tests.interpreter.hopper \\
        tests.interpreter.sampled_choice

Silent if they agree.
"""

import torch

from vllm_lladav.denoising.noise import uniform
from vllm_lladav.denoising.unmasking import (
    chosen_probability,
    greedy_tokens,
    gumbel_tokens,
)
from vllm_lladav.kernels.sampled import BLOCK, sampled_choice

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
VOCABULARIES = (1, 7, 448, BLOCK, BLOCK + 1, 3 * BLOCK - 5)
TEMPERATURES = torch.tensor([0.05, 0.3, 0.7, 1.0, 2.0], dtype=torch.float64)
KEYS = torch.tensor([0, -1, 1 << 62, -(1 << 63), 123456789])


def check(logits: torch.Tensor, restricted: torch.Tensor | None = None) -> torch.Tensor:
    """``[5, vocab]`` each; returns the tokens."""
    wide = logits.float().clone()  # The twin overwrites it.
    words = wide
    if restricted is not None:
        words = wide.masked_fill(restricted == float("-inf"), float("-inf"))
    expected = gumbel_tokens(words, TEMPERATURES, uniform(KEYS, logits.shape[1]))
    probability = chosen_probability(wide, greedy_tokens(wide), expected)
    tokens, found = sampled_choice(logits, restricted, TEMPERATURES, KEYS)
    assert torch.equal(tokens, expected), (logits.shape, logits.dtype)
    # The unlikely ones carry the rounding of their distance to the best.
    torch.testing.assert_close(found, probability, rtol=1e-5, atol=0)
    torch.testing.assert_close(1 - found, 1 - probability, rtol=1e-4, atol=1e-15)
    return tokens


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype in DTYPES:
        for vocab in VOCABULARIES:
            for scale in (0.1, 3.0, 30.0):
                logits = scale * torch.randn(5, vocab, generator=generator)
                logits = logits.to(dtype)
                check(logits)
                # Of another width than the logits, as the head pads its own.
                restricted = torch.rand(5, vocab + 3, generator=generator)[:, :vocab]
                dropped = restricted < 0.5
                dropped[:, vocab // 2] = False
                check(logits, restricted.masked_fill(dropped, float("-inf")))
    only = torch.full((5, 2 * BLOCK), float("-inf"))
    only[:, BLOCK + 3] = 0.0
    assert set(check(torch.zeros(5, 2 * BLOCK), only).tolist()) == {BLOCK + 3}
    banned = torch.randn(5, 2 * BLOCK, generator=generator)
    banned[:, : BLOCK + 3] = float("-inf")
    banned[0, : 2 * BLOCK - 1] = float("-inf")
    assert check(banned)[0] == 2 * BLOCK - 1
    check(torch.randn(5, 1000, generator=generator)[:, :700])
    nothing = torch.empty(0, 9)
    tokens, _ = sampled_choice(nothing, None, TEMPERATURES[:0], KEYS[:0])
    assert tokens.shape == (0,)


if __name__ == "__main__":
    main()
