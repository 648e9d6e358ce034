# SPDX-License-Identifier: Apache-2.0
"""Answers of the model in training: the exact denoising loop, greedy, in batches."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from tokenizers import Tokenizer

from examples.tiny import prompts
from examples.tiny.batches import BANNED_IDS, EOT_ID, MASK_ID
from examples.tiny.model import GEOMETRY, Lladav
from vllm_lladav.model.lladav.anyres import preprocess


@dataclass(frozen=True)
class Denoising:
    """As the request parameters of the server."""

    gen_length: int = 32
    block_length: int = 32
    steps: int = 32


@torch.no_grad()
def answer(
    model: Lladav,
    encoder: Tokenizer,
    asked: Sequence[tuple[Image.Image, str]],
    denoising: Denoising,
    batch_size: int = 32,
) -> list[str]:
    """Answer questions about pictures, in their order."""
    groups = defaultdict(list)  # by layout
    prompt_ids = [prompts.prompt_ids(encoder, question) for _, question in asked]
    for index, ((image, _), (_, behind)) in enumerate(
        zip(asked, prompt_ids, strict=True)
    ):
        groups[image.size, len(behind)].append(index)
    answers = [""] * len(asked)
    for (size, _), group in groups.items():
        for start in range(0, len(group), batch_size):
            part = group[start : start + batch_size]
            tiles = torch.stack([preprocess(asked[i][0], GEOMETRY) for i in part])
            before = torch.tensor([prompt_ids[i][0] for i in part])
            behind = torch.tensor([prompt_ids[i][1] for i in part])
            visual = model.visual_embeddings(tiles, size)
            canvas = denoise(
                model, encoder.get_vocab_size(), visual, before, behind, denoising
            )
            for index, ids in zip(part, canvas.tolist(), strict=True):
                end = ids.index(EOT_ID) if EOT_ID in ids else len(ids)
                answers[index] = encoder.decode(ids[:end], skip_special_tokens=False)
    return answers


def denoise(
    model: Lladav,
    num_tokens: int,
    visual: torch.Tensor,
    before: torch.Tensor,
    behind: torch.Tensor,
    denoising: Denoising,
) -> torch.Tensor:
    """Low-confidence remasking, ``[b, gen_length]`` int64.

    The first <|eot_id|> so far bounds the answer: nothing behind it is unmasked.
    """
    length, block = denoising.gen_length, denoising.block_length
    canvas = torch.full((len(before), length), MASK_ID)
    blocks = length // block
    steps = denoising.steps // blocks
    for index in range(blocks):
        for step in range(steps):
            count = block // steps + (step < block % steps)
            if not count:
                break
            ids = torch.cat([behind, canvas], dim=1)
            hidden = model.decode(model.embed(visual, before, ids), length)
            logits = model.lm_head(hidden)[..., :num_tokens].double()
            logits[..., BANNED_IDS] = -torch.inf
            confidence, tokens = logits.softmax(dim=-1).max(dim=-1)
            confidence[canvas != MASK_ID] = -torch.inf
            confidence[:, (index + 1) * block :] = -torch.inf
            confidence[(canvas == EOT_ID).cumsum(dim=1) > 0] = -torch.inf
            values, chosen = confidence.topk(count)
            old, new = canvas.gather(1, chosen), tokens.gather(1, chosen)
            canvas.scatter_(1, chosen, torch.where(values > -torch.inf, new, old))
    return canvas
