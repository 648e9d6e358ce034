# SPDX-License-Identifier: Apache-2.0
"""The softmax of a row of logits that is read in blocks."""

from vllm.triton_utils import tl, triton


@triton.jit
def with_block(logit, columns, best, others):
    """What is known of a row once a block more of it was read.

    Args:
        logit: of the block, float32.
        columns: of the block, from 0.
        best: the largest logit so far; -inf where none is finite.
        others: the sum of exp(logit - best) of all but the best so far.

    Returns:
        The new ``best`` and ``others``, and which column of the block the first of its
        largest logits is in.
    """
    largest, place = tl.max(logit, 0, return_indices=True)
    if largest > best:
        above = tl.where(columns == place, float("-inf"), logit)
        carried = (others + 1) * tl.exp(best - largest)
        others = tl.sum(tl.exp(above - largest), 0) + carried
        best = largest
    elif best > float("-inf"):
        others += tl.sum(tl.exp(logit - best), 0)
    return best, others, place
