# SPDX-License-Identifier: Apache-2.0
"""The most likely token of every row of logits and its probability, in one pass.

The twin is ``greedy_tokens`` with ``chosen_probability`` of ``denoising/unmasking.py``,
which goes over the logits several times and needs them in float32.
"""

import torch
from vllm.triton_utils import tl, triton

from vllm_lladav.kernels.softmax import with_block

BLOCK = 8192
"""Logits that a program has at hand."""


def greedy_choice(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Args:
        logits: ``[n, vocab]``, float32 or narrower, rows contiguous; every row has a
            finite one.

    Returns:
        Tokens, the first ones of equals (``[n]``, int64), and their softmax
        probabilities (``[n]``, float64), which are 1 less what the others leave of it,
        so that those next to 1 differ.
    """
    num_rows, vocab = logits.shape
    tokens = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    probabilities = torch.empty(num_rows, dtype=torch.float64, device=logits.device)
    if num_rows:
        _greedy_choice_kernel[(num_rows,)](
            logits, logits.stride(0), vocab, tokens, probabilities, BLOCK=BLOCK
        )
    return tokens, probabilities


@triton.jit
def _greedy_choice_kernel(
    logits_ptr,
    stride,
    vocab,
    tokens_ptr,
    probabilities_ptr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    best = tl.full((), float("-inf"), tl.float32)
    token = tl.full((), 0, tl.int64)
    others = tl.full((), 0.0, tl.float32)
    for start in range(0, vocab, BLOCK):
        column = start + columns
        logit = tl.load(
            logits_ptr + row * stride + column,
            mask=column < vocab,
            other=float("-inf"),
        ).to(tl.float32)
        before = best
        best, others, place = with_block(logit, columns, best, others)
        if best > before:
            token = (start + place).to(tl.int64)
    tl.store(tokens_ptr + row, token)
    tl.store(probabilities_ptr + row, 1.0 / (1.0 + others.to(tl.float64)))
