# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of unmasking, as pure functions on tensors.

Source of the behaviour: ``generate_with_embeds`` of the official LLaDA-V code
and the LLaDA paper (arXiv 2502.09992, section 2.4).
"""

from typing import NamedTuple

import torch

ARGMAX_CHUNK = 512

UNSET = 1 << 30
"""An offset that no canvas has."""


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


def first_offset(where: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Smallest of the ``offsets`` at which ``where`` (``[..., w]``, bool) holds:
    ``[...]``, int64; :data:`UNSET` if there is none."""
    return torch.where(where, offsets, UNSET).amin(dim=-1)


def shared_transfers(
    num_masks: torch.Tensor, steps: torch.Tensor, step: torch.Tensor
) -> torch.Tensor:
    """:func:`~vllm_lladav.denoising.plan.transfer_count` of tensors."""
    share = torch.div(num_masks, steps, rounding_mode="floor")
    return share + (step < num_masks - share * steps)


def num_confident(
    ranked: torch.Tensor, threshold: torch.Tensor, factor: torch.Tensor
) -> torch.Tensor:
    """How many positions confidence decoding transfers (arXiv 2505.22618).

    Args:
        ranked: ``[n, k]``, float64: the confidence of each request's candidates from
            the largest to the least, minus infinity behind them.
        threshold: ``[n, 1]``, float64: those that reach it are transferred; infinite
            for no such rule.
        factor: ``[n, 1]``, float64: the m most confident are, as long as ``(m + 1) *
            (1 - c) < factor`` holds for the least confident of them; minus infinity
            for no such rule.

    Returns:
        ``[n]``, int64, at least 1. With both rules, what either of them allows.
    """
    number = torch.arange(2, ranked.shape[1] + 2, device=ranked.device)
    fails = number * (1 - ranked) >= factor
    allowed = (ranked >= threshold) | (fails.cumsum(dim=1) == 0)
    return allowed.sum(dim=1).clamp(min=1)


class Ranking(NamedTuple):
    """
    Attributes:
        chosen: ``[n, w]``, bool.
        is_clear: ``[n]``, bool: whether it follows from the numbers alone. It does not
            where there are fewer candidates than wanted, or equal ones on both sides
            of the cut, of which the lower positions are chosen.
    """

    chosen: torch.Tensor
    is_clear: torch.Tensor


def most_confident(
    confidence: torch.Tensor, ranked: torch.Tensor, counts: torch.Tensor
) -> Ranking:
    """The ``counts`` most confident candidates of each request.

    Args:
        confidence: ``[n, w]``, float64; minus infinity where no candidate is.
        ranked: ``[n, k]``: the largest of them, descending; k is ``counts`` or more.
        counts: ``[n]``, int64.
    """
    last = (counts - 1).clamp(min=0, max=ranked.shape[1] - 1)
    least = ranked.gather(1, last[:, None])
    above = confidence > least
    tied = (confidence == least) & (confidence > -torch.inf)
    room = counts - above.sum(dim=1)
    place = tied.cumsum(dim=1)
    chosen = above | (tied & (place <= room[:, None]))
    return Ranking(chosen, (place[:, -1] == room) | (counts == 0))


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
