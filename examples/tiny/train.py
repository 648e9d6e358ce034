# SPDX-License-Identifier: Apache-2.0
"""Train the tiny LLaDA-V: first its vision tower and words, then everything.

::

    python -m examples.tiny.train RUN

`README.md` has the time it takes and what comes out. ``RUN`` gets state.pt every few
minutes (continue with the same command), log.jsonl with the losses and with accuracies
on held-out questions, and in the end a checkpoint. Everything random follows from the
seed and the step, so a continued run is the same run.

Objective of the second stage, as in the LLaDA papers: mask every position of the
canvas (answer, <|eot_id|>, and <|eot_id|> to its end) with probability t, t uniform
over the batch, and sum the cross-entropies of masked positions over t; see
`batches._mask` for two changes that make it less noisy.

The learning rate is warmed up, stays, and falls linearly over the last part of the
run, so ``--steps`` may be changed while a run is under way.
"""

import argparse
import json
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from examples.tiny import (
    align,
    batches,
    export,
    patches,
    pictures,
    questions,
    scaffold,
    tokenizer,
)
from examples.tiny.curriculum import STAGES
from examples.tiny.model import Lladav
from examples.tiny.muon import Muon
from examples.tiny.sampler import Denoising, answer

WORD_DENOISING = Denoising(gen_length=8, block_length=8, steps=4)
SENTENCE_DENOISING = Denoising(gen_length=40, block_length=40, steps=20)


class Optimiser:
    """Muon for the matrices of the layers, AdamW for all else."""

    def __init__(self, module: nn.Module, muon_rate: float, adam_rate: float) -> None:
        matrices, others = [], []
        for name, parameter in module.named_parameters():
            is_inner = ".layers." in name or "mm_projector" in name
            matrix = is_inner and parameter.ndim == 2
            (matrices if matrix else others).append(parameter)
        self.parts: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=muon_rate, weight_decay=0.02, ns_steps=4),
            torch.optim.AdamW(others, lr=adam_rate, betas=(0.9, 0.98), weight_decay=0),
        ]
        self.rates = [muon_rate, adam_rate]
        self.parameters = [*matrices, *others]

    def step(self, loss: torch.Tensor, factor: float) -> float:
        """Update once; the norm of the gradients, which is clipped to 1."""
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for part, rate in zip(self.parts, self.rates, strict=True):
            part.param_groups[0]["lr"] = rate * factor
            part.step()
            part.zero_grad()
        return float(norm)

    def state(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]

    def load(self, states: list[dict[str, Any]]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def autocast(arguments: argparse.Namespace) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=arguments.bfloat16)


def losses(model: Lladav, batch: batches.Batch) -> dict[str, torch.Tensor]:
    """The objective ("loss"), and those of `scaffold.losses`."""
    # The prompt's tail has no weight: only what follows it needs the head.
    num_canvas = int((batch.weights.amax(0) > 0).int().flip(0).cumsum(0).argmax()) + 1
    visual = model.visual_embeddings(batch.tiles, batch.size)
    embeds = model.embed(visual, batch.before, batch.behind)
    outputs = model.layer_outputs(embeds)
    weights = batch.weights[:, -num_canvas:]
    is_masked = weights > 0
    logits = model.read(outputs[-1][:, -num_canvas:][is_masked])
    targets = batch.targets[:, -num_canvas:][is_masked]
    each = F.cross_entropy(logits.float(), targets, reduction="none")
    loss = (each * weights[is_masked]).sum() / len(batch.behind)
    return {"loss": loss, **scaffold.losses(model, batch, outputs)}


def rate_factor(step: int, steps: int, warmup: int, decay: float) -> float:
    """Of the learning rate: warm-up, constant, linear to zero."""
    return min(1, (step + 1) / warmup, max(0.01, (steps - step) / (decay * steps)))


def heldout(per_kind: int) -> list[tuple[Any, questions.Question]]:
    """Pictures and questions that stay the same for the whole run."""
    rng = random.Random("heldout accuracy")
    found = []
    for kind in (*questions.WORD_KINDS, *questions.SENTENCE_KINDS):
        count = 0
        while count < per_kind:
            scene = pictures.draw_scene(rng, "heldout")
            question = questions.ask(rng, scene, {kind: 1.0})
            if question is not None:
                found.append((pictures.draw(scene, rng).image, question))
                count += 1
    return found


def accuracies(
    model: Lladav, encoder: Any, asked: list[tuple[Any, questions.Question]]
) -> dict[str, float]:
    """Exact matches per kind."""
    right = defaultdict(list)
    for task, denoising in (("word", WORD_DENOISING), ("sentence", SENTENCE_DENOISING)):
        part = [(image, q) for image, q in asked if q.task == task]
        got = answer(model, encoder, [(i, q.question) for i, q in part], denoising)
        for (_, question), text in zip(part, got, strict=True):
            right[question.kind].append(text == question.answer)
            right[task].append(text == question.answer)
    return {kind: round(sum(hits) / len(hits), 3) for kind, hits in right.items()}


def train_alignment(
    arguments: argparse.Namespace, model: Lladav, encoder: Tokenizer, log: "Log"
) -> dict[str, torch.Tensor]:
    """The model's state after the first stage."""
    alignment = align.Alignment(model, encoder)
    optimiser = Optimiser(alignment, arguments.muon_rate, arguments.adam_rate)
    steps = arguments.align_steps
    for step in tqdm(range(steps), desc="alignment", mininterval=5):
        batch = patches.make_patch_batch(48, arguments.seed, step)
        with autocast(arguments):
            loss, right = alignment.loss(batch)
        optimiser.step(loss, rate_factor(step, steps, 50, 0.4))
        if step % 20 == 0:
            log.write(stage="align", step=step, loss=float(loss), right=float(right))
    align.share_words(model, encoder)
    return model.state_dict()


class Log:
    """One JSON object per line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start = time.monotonic()

    def write(self, **values: Any) -> None:
        values["seconds"] = round(time.monotonic() - self.start, 1)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


class Batches(Dataset[batches.Batch]):
    """The batch of every step, made in a process beside the one that trains."""

    def __init__(self, arguments: argparse.Namespace, encoder: Tokenizer) -> None:
        self.arguments = arguments
        self.encoder = encoder

    def __getitem__(self, step: int) -> batches.Batch:
        stage = STAGES[step >= self.arguments.first_stage]
        return batches.make_batch(self.encoder, stage, self.arguments.seed, step)


def train_all(
    arguments: argparse.Namespace,
    model: Lladav,
    encoder: Tokenizer,
    log: Log,
    state: dict[str, Any],
) -> None:
    for layer in model.model.layers:
        layer.compile(dynamic=True)  # A quarter faster.
    optimiser = Optimiser(model, arguments.muon_rate, arguments.adam_rate)
    first = state.get("step", 0)
    if first:
        optimiser.load(state["optimiser"])
    asked = heldout(arguments.eval_per_kind)
    saved = time.monotonic()
    mean, samples = 0.0, state.get("samples", 0)
    steps = range(first, arguments.steps)
    made = iter(
        DataLoader(
            Batches(arguments, encoder),
            sampler=steps,
            batch_size=None,
            num_workers=1,
            prefetch_factor=4,
        )
    )
    progress = tqdm(steps, initial=first, total=arguments.steps, mininterval=5)
    for step in progress:
        batch = next(made)
        with autocast(arguments):
            parts = losses(model, batch)
        factor = rate_factor(step, arguments.steps, 100, arguments.decay)
        loss = parts["loss"] + factor * sum(
            weight * parts[name]
            for name, weight in scaffold.WEIGHTS.items()
            if name in parts
        )
        norm = optimiser.step(loss, factor)
        samples += len(batch.behind)
        values = {name: part.item() for name, part in parts.items()}
        mean = values["loss"] if step == first else 0.98 * mean + 0.02 * values["loss"]
        is_last = step + 1 == arguments.steps
        if step % 20 == 0 or is_last:
            progress.set_postfix(loss=f"{mean:.3f}")
            log.write(stage="all", step=step, mean=mean, norm=norm, **values)
        if (step + 1) % arguments.eval_every == 0 or is_last:
            with autocast(arguments):
                found = accuracies(model, encoder, asked)
            log.write(stage="accuracy", step=step, samples=samples, **found)
            progress.write(f"{step}: {found}")
        if time.monotonic() - saved > 180 or is_last:
            saved = time.monotonic()
            save(arguments.run, model, optimiser, step + 1, samples)


def save(
    run: Path, model: Lladav, optimiser: Optimiser, step: int, samples: int
) -> None:
    state = {
        "model": model.state_dict(),
        "optimiser": optimiser.state(),
        "step": step,
        "samples": samples,
    }
    torch.save(state, run / "state.new")
    (run / "state.new").replace(run / "state.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--bfloat16", action="store_true", help="for CPUs with products in bfloat16"
    )
    parser.add_argument("--align-steps", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--decay", type=float, default=0.5, help="share of the steps")
    parser.add_argument("--muon-rate", type=float, default=4e-3)
    parser.add_argument("--adam-rate", type=float, default=2e-3)
    parser.add_argument(
        "--first-stage", type=int, default=400, help="steps of easier batches"
    )
    parser.add_argument("--eval-every", type=int, default=400)
    parser.add_argument("--eval-per-kind", type=int, default=16)
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    arguments.run.mkdir(parents=True, exist_ok=True)
    log = Log(arguments.run / "log.jsonl")
    model = Lladav(export.vocab_rows())
    encoder = tokenizer.load()
    aligned_path, state_path = arguments.run / "aligned.pt", arguments.run / "state.pt"
    if not aligned_path.is_file():
        torch.save(train_alignment(arguments, model, encoder, log), aligned_path)
    model.load_state_dict(torch.load(aligned_path, weights_only=True))
    state: dict[str, Any] = {}
    if state_path.is_file():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
    train_all(arguments, model, encoder, log, state)
    export.write_checkpoint(model.state_dict(), arguments.run / "checkpoint")


if __name__ == "__main__":
    main()
