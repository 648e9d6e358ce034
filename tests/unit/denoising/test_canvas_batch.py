# SPDX-License-Identifier: Apache-2.0
"""Canvases of many requests in one batch, and the order that needs no host."""

import random
from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.canvas import CPU
from tests.unit.denoising.test_canvas import MASK, Request, requests, run
from vllm_lladav.denoising.canvas import Canvases, CanvasRequest
from vllm_lladav.denoising.canvas_step import CanvasStep
from vllm_lladav.denoising.marks import StepReport
from vllm_lladav.worker.step_output import packed


@dataclass
class Member:
    """A request of a batch, and what it did."""

    request: Request
    outputs: list[list[int]] = field(default_factory=list)
    finish: int | None = None

    @property
    def prompt_masks(self) -> np.ndarray:
        return np.flatnonzero(np.array(self.request.prompt) == MASK)

    def predictions(self, columns: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """At all columns of the canvas, given their tokens."""
        masks, prompt = self.prompt_masks, np.array(self.request.prompt)
        prompt[masks] = columns[: len(masks)]
        tokens, confidence = self.request.predictions(
            np.concatenate([prompt, columns[len(masks) :]])
        )
        positions = np.concatenate([masks, np.arange(len(prompt), len(tokens))])
        return torch.from_numpy(tokens[positions]), confidence[positions]


def step(canvases: Canvases, members: dict[int, Member], spare: int) -> None:
    """Of some requests, by slot. Room for ``spare`` more candidates than there are."""
    batch = canvases.batch([*members])
    canvas = CanvasStep(canvases, batch, None)
    tokens = torch.full(canvas.candidates.shape, 7)
    confidence = torch.full(canvas.candidates.shape, 2.0, dtype=torch.float64)
    for row, (slot, member) in enumerate(members.items()):
        width = CanvasRequest(
            member.request.params, len(member.prompt_masks)
        ).num_columns
        columns = canvases.tokens[slot, :width].numpy().copy()
        tokens[row, :width], confidence[row, :width] = member.predictions(columns)
    number = int(canvas.candidates.sum())
    places = canvas.candidates.flatten().nonzero_static(
        size=number + spare, fill_value=-1
    )[:, 0]
    most = int(canvas.candidates.sum(dim=1).max()) + spare
    flat = tokens.flatten()[places], confidence.flatten()[places]
    canvas.transfer(places, *flat, most)
    canvas.advance()
    rows, counts = packed(canvas, canvas.emit(), [None] * len(members))
    for member, row, count in zip(
        members.values(), rows.tolist(), counts.tolist(), strict=True
    ):
        output = row[:count]
        if member.finish is not None:
            assert output == [], "an ended request hands out something"
            continue
        report = StepReport.take(output)
        member.outputs.append(output)
        member.finish = report.finish


@settings(max_examples=60, deadline=None)
@given(st.lists(requests(), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_batch_is_as_each_alone(many: list[Request], seed: int):
    """Whoever else is in the batch, and however wide it is; also when a request runs
    on in vain after its end."""
    canvases = Canvases(MASK, 6, CPU)
    choice = random.Random(seed)
    slots = choice.sample(range(6), len(many))
    members = {slot: Member(request) for slot, request in zip(slots, many, strict=True)}
    for slot, member in members.items():
        request = CanvasRequest(member.request.params, len(member.prompt_masks))
        canvases.add(slot, request)
    while any(member.finish is None for member in members.values()):
        some = choice.sample(slots, choice.randint(1, len(slots)))
        step(canvases, {slot: members[slot] for slot in some}, choice.randrange(9))
    for member in members.values():
        request = member.request
        alone = run(request, request.canvas(has_official_order=False))
        *answer, mark = [token for output in alone.outputs for token in output]
        assert [t for output in member.outputs for t in output] == answer
        assert member.finish == mark
        assert len(member.outputs) == len(alone.outputs)


@settings(max_examples=80, deadline=None)
@given(requests())
def test_order_that_needs_no_host(request: Request):
    """Of equals the lower position, and only candidates; where neither matters, what
    the official code transfers."""
    canvas = request.canvas(has_official_order=False)
    while not canvas.finished:
        tokens, confidence = request.predictions(canvas.token_ids)
        candidates = canvas.candidates()
        official = deepcopy(canvas)
        official.has_official_order = True
        arguments = candidates, tokens[candidates], confidence[candidates]
        moved = canvas.transfer(*arguments, tokens.__getitem__)
        count = canvas.num_wanted
        ranked = sorted(candidates, key=lambda p: (-float(confidence[p]), p))
        assert moved.tolist() == sorted(ranked[:count])
        edge = [float(confidence[p]) for p in ranked[max(count - 1, 0) : count + 1]]
        if count <= len(candidates) and len(set(edge)) == len(edge):
            expected = official.transfer(*arguments, tokens.__getitem__)
            assert moved.tolist() == expected.tolist()
