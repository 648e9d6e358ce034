# SPDX-License-Identifier: Apache-2.0
"""The first stage: visual embeddings learn the words for what they show.

What image-text pre-training does for SigLIP, and the projector's alignment for LLaVA:
a sigmoid loss between every patch's embedding, behind the projector, and the word
embeddings of the colours, kinds and places. The decoder then finds the words of a
question in the picture by content, which it would take long to discover by itself.
"""

import math

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import nn

from examples.tiny import pictures
from examples.tiny.model import Lladav
from examples.tiny.patches import PatchBatch
from examples.tiny.tokenizer import word_id

GROUPS = (
    tuple(pictures.COLOURS),
    pictures.KINDS,
    pictures.ROWS,
    pictures.COLUMNS,
)
"""Words of each column of ``PatchBatch.labels``."""


class Alignment(nn.Module):
    """A model's tower, projector and word embeddings, and a scale and bias."""

    def __init__(self, model: Lladav, encoder: Tokenizer) -> None:
        super().__init__()
        self.tower = model.tower
        self.mm_projector = model.model.mm_projector
        self.embed_tokens = model.model.embed_tokens
        self.scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-5.0))
        words = [word for group in GROUPS for word in group]
        self.word_ids = torch.tensor([word_id(encoder, w) for w in words])

    def loss(self, batch: PatchBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the mean patch, and the share of things' patches whose colour and kind
        are the most likely ones."""
        patches = self.mm_projector(self.tower(batch.tiles)).float()
        words = self.embed_tokens(self.word_ids)
        cosine = F.normalize(patches, dim=-1) @ F.normalize(words, dim=-1).T
        logits = cosine * self.scale.exp() + self.bias
        targets, known = _targets(batch.labels)
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        colours, kinds = logits.split([len(group) for group in GROUPS], dim=-1)[:2]
        right = (colours.argmax(-1) == batch.labels[..., 0] - 1) & (
            kinds.argmax(-1) == batch.labels[..., 1] - 1
        )
        is_thing = batch.labels[..., 0] > 0
        return (losses * known).sum(-1).mean(), right[is_thing].float().mean()


def _targets(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``[..., words]`` float32 each: 1 for the words of a patch, and 1 for those of
    which it is known whether they are."""
    targets, known = [], []
    for column, group in enumerate(GROUPS):
        label = labels[..., column]
        targets.append(F.one_hot(label.clamp(min=0), 1 + len(group))[..., 1:])
        known.append((label >= 0)[..., None].expand(*label.shape, len(group)))
    return torch.cat(targets, -1).float(), torch.cat(known, -1).float()


@torch.no_grad()
def share_words(model: Lladav, encoder: Tokenizer) -> None:
    """Let a word begin with the same embedding with and without a space before it, and
    the head with the embeddings' directions."""
    embeddings = model.model.embed_tokens.weight
    for word in {word for group in GROUPS for word in group}:
        spaced = embeddings[word_id(encoder, word)]
        embeddings[encoder.token_to_id(word)] = spaced + 0.1 * torch.randn_like(spaced)
    model.lm_head.weight.copy_(0.1 * embeddings)
