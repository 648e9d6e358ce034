# SPDX-License-Identifier: Apache-2.0
"""Compares the kernel with its twin, in Triton's interpreter.

    TRITON_INTERPRET=1 python -m tests.interpreter.hopper \\
        tests.interpreter.greedy_choice

Silent if they agree.
"""

import torch

from vllm_lladav.denoising.unmasking import chosen_probability, greedy_tokens
from vllm_lladav.kernels.greedy import BLOCK, greedy_choice

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
VOCABULARIES = (1, 7, 448, BLOCK, BLOCK + 1, 3 * BLOCK - 5)


def check(logits: torch.Tensor) -> None:
    wide = logits.float().clone()  # The twin overwrites it.
    best = greedy_tokens(wide)
    probability = chosen_probability(wide, best, best)
    tokens, found = greedy_choice(logits)
    assert torch.equal(tokens, best), (logits.shape, logits.dtype)
    torch.testing.assert_close(found, probability, rtol=1e-5, atol=0)
    # What is left of 1, too: sure positions must not tie.
    torch.testing.assert_close(1 - found, 1 - probability, rtol=1e-4, atol=1e-15)


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype in DTYPES:
        for vocab in VOCABULARIES:
            for scale in (0.1, 3.0, 30.0):
                logits = scale * torch.randn(5, vocab, generator=generator)
                check(logits.to(dtype))
    ties = torch.zeros(3, 2 * BLOCK)
    ties[1, BLOCK - 1 :] = 4.0
    ties[2, BLOCK:] = 4.0
    check(ties)
    banned = torch.randn(4, 2 * BLOCK, generator=generator)
    banned[:, : BLOCK + 3] = float("-inf")
    banned[0, : 2 * BLOCK - 1] = float("-inf")
    check(banned)
    padded = torch.randn(4, 1000, generator=generator)
    check(padded[:, :700])
    assert greedy_choice(torch.empty(0, 9))[0].shape == (0,)


if __name__ == "__main__":
    main()
