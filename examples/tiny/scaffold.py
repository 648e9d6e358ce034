# SPDX-License-Identifier: Apache-2.0
"""Dense hints beside the objective, for what a word's cross-entropy is slow to teach.

A word of an answer says little about how it is found: which question words matter,
which visual tokens they mean, what of these to answer. Each step gets a loss of its
own, in the middle of the decoder. The losses fade with the learning rate.
"""

import torch
import torch.nn.functional as F

from examples.tiny import tokenizer
from examples.tiny.batches import NO_THING, NO_WORD, Batch
from examples.tiny.model import SIZE, Lladav, rotary, rotate

WEIGHTS = {"shown": 0.2, "named": 0.6, "attention": 0.6, "found": 0.6}

SHOWN_LAYERS = ((2, 4), (4, 5))
"""Layers, and how many of ``Batch.words`` a visual token has to know behind them."""
NAMED_LAYER = 4
FIND_LAYER = 6
"""Its first head looks for the things, its output has their words."""

_NO_ID = tokenizer.word_id(tokenizer.load(), "no")
_SMALLEST = 1e-6


def losses(
    model: Lladav, batch: Batch, outputs: list[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """By the names of `WEIGHTS`; without one-word answers only the first one.

    - shown: the head reads off a visual token the words for what it shows.
    - named: off an answer's first token, the words of the question that name
      something.
    - attention: one head attends from there to the things that the answer follows
      from, or, to the share of them that is missing, to anything but visual tokens.
    - found: then the head of the model reads the words for these things there, or
      "no".

    Args:
        outputs: ``[b, n, hidden]`` behind every layer.
    """
    first = batch.before.shape[1]
    last = first + batch.shown.shape[1]
    found = {"shown": _shown(model, batch, [x[:, first:last] for x in outputs])}
    sought = batch.sought
    if not len(sought.sequences):
        return found
    at = sought.sequences, sought.positions + last
    named = _read(model, outputs[NAMED_LAYER - 1][at])
    found["named"] = -_mean_of_known(named, sought.named).mean()
    mass = attention_mass(model, outputs[FIND_LAYER - 2], at, batch)
    found["attention"] = -(sought.shares * (mass + _SMALLEST).log()).sum(-1).mean()
    logs = _read(model, outputs[FIND_LAYER - 1][at])
    words = batch.words[sought.sequences][..., :4]
    things = logs.gather(1, words.flatten(1)).view(words.shape).mean(-1)
    either = torch.cat([things, logs[:, _NO_ID, None]], dim=-1)
    found["found"] = -(sought.shares * either).sum(-1).mean()
    return found


def _read(model: Lladav, hidden: torch.Tensor) -> torch.Tensor:
    """``[..., hidden]`` to the logarithms of the head's probabilities."""
    return model.read(hidden).float().log_softmax(dim=-1)


def _mean_of_known(logs: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """``[k, vocab]`` at ids ``[k, w]``, some of which are `NO_WORD`: means ``[k]``."""
    is_known = ids != NO_WORD
    chosen = logs.gather(1, ids.clamp(min=0)) * is_known
    return chosen.sum(1) / is_known.sum(1).clamp(min=1)


def _shown(model: Lladav, batch: Batch, outputs: list[torch.Tensor]) -> torch.Tensor:
    """``outputs`` of the visual tokens."""
    sequences, tokens = (batch.shown != NO_THING).nonzero(as_tuple=True)
    words = batch.words[sequences, batch.shown[sequences, tokens]]
    parts = []
    for layer, count in SHOWN_LAYERS:
        logs = _read(model, outputs[layer - 1][sequences, tokens])
        parts.append(-logs.gather(1, words[:, :count]).mean())
    return torch.stack(parts).mean()


def attention_mass(
    model: Lladav,
    hidden: torch.Tensor,
    at: tuple[torch.Tensor, torch.Tensor],
    batch: Batch,
) -> torch.Tensor:
    """Attention of the finding head from positions ``at``, ``[k, num_things + 1]``: to
    each thing's visual tokens, and to all that is not visual."""
    layer = model.model.layers[FIND_LAYER - 1]
    attention, width = layer.self_attn, SIZE.head_dim
    sequences, positions = at
    x = layer.input_layernorm(hidden)
    cos, sin = rotary(x.shape[1])
    key = rotate(F.linear(x, attention.k_proj.weight[:width]), cos, sin)
    query = F.linear(x[at], attention.q_proj.weight[:width])
    query = rotate(query, cos[positions], sin[positions])
    scores = (key[sequences] @ query[..., None]).squeeze(-1) * width**-0.5
    probabilities = scores.float().softmax(dim=-1)
    first, num_things = batch.before.shape[1], batch.words.shape[1]
    visual = probabilities[:, first : first + batch.shown.shape[1]]
    classes = F.one_hot(batch.shown[sequences] - NO_THING, num_things + 1)
    mass = (visual[:, None] @ classes.float()).squeeze(1)[:, 1:]
    return torch.cat([mass, 1 - visual.sum(-1, keepdim=True)], dim=-1)
