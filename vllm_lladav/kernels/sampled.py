# SPDX-License-Identifier: Apache-2.0
"""A token drawn for every row of logits and its probability, in one pass.

The twin is ``gumbel_tokens`` on the numbers of ``denoising/noise.py``, with
``chosen_probability``, which have logits and noise of the vocabulary in memory. Here
both are made where they are compared.
"""

import torch
from vllm.triton_utils import tl, triton

from vllm_lladav.kernels.softmax import with_block

BLOCK = 2048
"""Logits that a program has at hand, and scores of them in float64."""

WARPS = 8


def sampled_choice(
    logits: torch.Tensor,
    restricted: torch.Tensor | None,
    temperature: torch.Tensor,
    keys: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Args:
        logits: ``[n, vocab]``, float32 or narrower, rows contiguous; -inf where no
            word may stand.
        restricted: ``[n, vocab]``, any float, rows contiguous: -inf where no token may
            be drawn, finite where the logit is and the token may; None if all may.
        temperature: > 0: ``[n]``, float64.
        keys: of the noise: ``[n]``, int64.

    Returns:
        Tokens (``[n]``, int64), and their softmax probabilities at temperature 1 among
        all logits (``[n]``, float64), where those next to 1 differ.
    """
    num_rows, vocab = logits.shape
    tokens = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    probabilities = torch.empty(num_rows, dtype=torch.float64, device=logits.device)
    allowed = logits if restricted is None else restricted
    if num_rows:
        _sampled_choice_kernel[(num_rows,)](
            logits,
            logits.stride(0),
            allowed,
            allowed.stride(0),
            vocab,
            temperature,
            keys,
            tokens,
            probabilities,
            RESTRICTS=restricted is not None,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
    return tokens, probabilities


@triton.jit
def _uniform(key, column):
    """As ``uniform`` of ``denoising/noise.py``."""
    bits = key + (column + 1).to(tl.uint64) * tl.full((), 0x9E3779B97F4A7C15, tl.uint64)
    bits = (bits ^ (bits >> 30)) * tl.full((), 0xBF58476D1CE4E5B9, tl.uint64)
    bits = (bits ^ (bits >> 27)) * tl.full((), 0x94D049BB133111EB, tl.uint64)
    bits = bits ^ (bits >> 31)
    one = tl.full((), 0x3FF0000000000000, tl.uint64)
    number = ((bits >> 12) | one).to(tl.float64, bitcast=True)
    return number - tl.full((), 0.9999999999999999, tl.float64)


@triton.jit
def _sampled_choice_kernel(
    logits_ptr,
    logits_stride,
    allowed_ptr,
    allowed_stride,
    vocab,
    temperature_ptr,
    keys_ptr,
    tokens_ptr,
    probabilities_ptr,
    RESTRICTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    temperature = tl.load(temperature_ptr + row)
    key = tl.load(keys_ptr + row).to(tl.uint64, bitcast=True)
    best = tl.full((), float("-inf"), tl.float32)
    others = tl.full((), 0.0, tl.float32)
    best_score = tl.full((), float("-inf"), tl.float64)
    token = tl.full((), 0, tl.int64)
    for start in range(0, vocab, BLOCK):
        column = start + columns
        logit = tl.load(
            logits_ptr + row * logits_stride + column,
            mask=column < vocab,
            other=float("-inf"),
        ).to(tl.float32)
        best, others, _ = with_block(logit, columns, best, others)
        noise = temperature * tl.log(-tl.log(_uniform(key, column)))
        score = logit.to(tl.float64) - noise
        if RESTRICTS:
            allowed = tl.load(
                allowed_ptr + row * allowed_stride + column,
                mask=column < vocab,
                other=float("-inf"),
            )
            score = tl.where(allowed > float("-inf"), score, float("-inf"))
        largest, place = tl.max(score, 0, return_indices=True)
        if largest > best_score:
            best_score = largest
            token = (start + place).to(tl.int64)
    chosen = tl.load(logits_ptr + row * logits_stride + token).to(tl.float64)
    ratio = tl.exp(chosen - best.to(tl.float64))
    tl.store(tokens_ptr + row, token)
    tl.store(probabilities_ptr + row, ratio / (1.0 + others.to(tl.float64)))
