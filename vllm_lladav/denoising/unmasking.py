# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of unmasking, as pure functions on tensors and sequences.

Source of the behaviour: ``generate_with_embeds`` of the official LLaDA-V code
and the LLaDA paper (arXiv 2502.09992, section 2.4).
"""

from collections.abc import Sequence

import numpy as np
import torch

ARGMAX_CHUNK = 512


def greedy_tokens(logits: torch.Tensor) -> torch.Tensor:
    """Most likely token of every row, the first one of equals.

    ``[n, vocab]`` -> ``[n]``, int64; what ``logits.argmax(-1)`` returns. The
    maximum of every chunk comes first because torch's maximum is vectorised and
    its argmax is not (6 times slower over a vocabulary on a CPU).
    """
    num_chunks = logits.shape[-1] // ARGMAX_CHUNK
    if num_chunks == 0:
        return logits.argmax(dim=-1)
    split = num_chunks * ARGMAX_CHUNK
    chunks = logits[:, :split].unflatten(-1, (num_chunks, ARGMAX_CHUNK))
    largest, chunk = chunks.amax(dim=-1).max(dim=-1)
    rows = torch.arange(len(logits), device=logits.device)
    tokens = chunk * ARGMAX_CHUNK + chunks[rows, chunk].argmax(dim=-1)
    if split < logits.shape[-1]:
        rest_largest, rest = logits[:, split:].max(dim=-1)
        tokens = torch.where(rest_largest > largest, split + rest, tokens)
    return tokens


def gumbel_tokens(
    logits: torch.Tensor, temperature: torch.Tensor, uniform: torch.Tensor
) -> torch.Tensor:
    """Sample a token for every row: ``[n, vocab]`` -> ``[n]``, int64.

    Args:
        logits: ``[n, vocab]``, float32; -inf for what may not be drawn.
        temperature: > 0: ``[n]``, float64.
        uniform: ``[n, vocab]``, float64 in [0, 1): the noise to use; overwritten.

    The Gumbel-max trick in float64 (arXiv 2409.02908 shows that lower
    precision changes the distribution). The official code compares
    ``exp(logit) / (-log u) ** temperature``; these are the logarithms of that, which
    take neither a power nor a quotient.
    """
    noise = uniform.log_().neg_().log_().mul_(temperature[:, None])
    return greedy_tokens(torch.sub(logits, noise, out=noise))


def chosen_probability(
    logits: torch.Tensor, best: torch.Tensor, chosen: torch.Tensor
) -> torch.Tensor:
    """Softmax probability of one chosen token per row.

    Args:
        logits: ``[n, vocab]``, float32; overwritten.
        best: ``[n]``, int64, :func:`greedy_tokens` of them.
        chosen: ``[n]``, int64.

    Returns:
        ``[n]``, float64. No ``[n, vocab]`` float64 copy is made: a probability
        next to 1 is what the others, added up apart from it, leave of 1, so that
        such rows still differ as they do in float64.
    """
    best = best[:, None]
    ratio = logits.gather(-1, chosen[:, None]).double() - logits.gather(-1, best)
    probabilities = torch.softmax(logits, dim=-1, out=logits)
    largest = probabilities.gather(-1, best).double()
    others = probabilities.scatter_(-1, best, 0.0).sum(dim=-1, keepdim=True).double()
    largest = torch.where(largest > 0.5, 1 - others, largest)
    return (ratio.exp() * largest)[:, 0]


def num_confident(
    confidence: torch.Tensor, threshold: float | None, factor: float | None
) -> int:
    """How many positions confidence decoding transfers (arXiv 2505.22618).

    Args:
        confidence: ``[n]``, float64, of the candidates, n > 0.
        threshold: those that reach it are transferred.
        factor: the n most confident are, as long as ``(n + 1) * (1 - c) < factor``
            holds for the least confident of them.

    Returns:
        At least 1. With both, what either of them allows.
    """
    ranked = confidence.sort(descending=True).values
    allowed = torch.zeros(len(ranked), dtype=torch.bool)
    if threshold is not None:
        allowed |= ranked >= threshold
    if factor is not None:
        n = torch.arange(1, len(ranked) + 1)
        allowed |= ((n + 1) * (1 - ranked) < factor).cummin(dim=0).values
    return max(int(allowed.sum()), 1)


def most_confident(confidence: np.ndarray, count: int) -> np.ndarray | None:
    """Which ``count`` of ``confidence`` (``[n]``) are the largest: ``[count]``, int64,
    ascending.

    None where that does not follow from the numbers alone, so that
    :func:`select_transfers` has to say: there are fewer, or equal ones on both sides of
    the cut.
    """
    if count > len(confidence):
        return None
    if count in (0, len(confidence)):
        return np.arange(count)
    order = np.argpartition(confidence, -count)
    least = confidence[order[-count]]
    if np.count_nonzero(confidence >= least) > count:
        return None
    return np.sort(order[-count:])


def select_transfers(
    candidates: torch.Tensor, confidence: torch.Tensor, count: int, length: int
) -> torch.Tensor:
    """Positions that are transferred in this step: ``[count]``, int64.

    Args:
        candidates: ``[n]``, int64, ascending positions that may be transferred.
        confidence: ``[n]``, float64.
        count: how many positions to return; may exceed ``n``.
        length: of the whole sequence (prompt, canvas and suffix).

    The official code runs ``torch.topk`` over the whole sequence with -inf at
    every other position. When fewer than ``count`` positions are candidates it
    still returns ``count`` positions, and which of the -inf ones it takes
    depends on that layout. The same call on the same layout is what makes
    these ties come out as they do there.
    """
    scores = torch.full((length,), float("-inf"), dtype=torch.float64)
    scores[candidates] = confidence
    return torch.topk(scores, count).indices


def find_sequence(tokens: np.ndarray, pattern: Sequence[int]) -> int | None:
    """First index at which ``pattern`` stands in ``tokens`` (``[n]``), or None."""
    starts = np.arange(len(tokens) - len(pattern) + 1)
    for offset, token in enumerate(pattern):
        starts = starts[tokens[starts + offset] == token]
    return int(starts[0]) if len(starts) else None
