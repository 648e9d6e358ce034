# SPDX-License-Identifier: Apache-2.0
"""Training batches: each a function of the seed and the step, nothing else.

All sequences of a batch have one picture size and one total length: a shorter
question gets a longer canvas. So nothing is padded and no attention mask is needed.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from examples.tiny import pictures, prompts, questions, tokenizer
from examples.tiny.curriculum import Dialogue, Stage
from examples.tiny.model import GEOMETRY, visual_plan
from examples.tiny.patches import patch_things
from examples.tiny.pictures import Scene
from examples.tiny.questions import Question
from examples.tiny.tokenizer import word_id
from vllm_lladav.model.lladav.anyres import preprocess

_IDS = tokenizer.special_ids()
EOT_ID, MASK_ID = _IDS[tokenizer.EOT], _IDS[tokenizer.MASK]
BANNED_IDS = [
    _IDS[name]
    for name in (
        *(tokenizer.ENDOFTEXT, tokenizer.STARTOFTEXT),
        *(tokenizer.START_HEADER, tokenizer.END_HEADER),
    )
]

MIN_MASK_RATE = 0.05
NO_THING = -1
NO_WORD = -1
MAX_NAMED = 2
"""Words for a thing's colour, kind, row or column in a one-word question, at most."""


@dataclass(frozen=True)
class Sought:
    """What the masked one-word answers of a batch follow from; ``k`` of them.

    Attributes:
        sequences: ``[k]`` int64, in the batch.
        positions: ``[k]`` int64, in ``Batch.behind``, of an answer's first token.
        shares: ``[k, num_things + 1]`` float32, rows sum to 1: how much of the answer
            is about each thing, and last, about there being none. Where things are
            counted, each thing of the picture has the same share, which goes to the
            last column if it does not count.
        named: ``[k, MAX_NAMED]`` int64, the question's own words for the colour, kind,
            row or column of a thing; `NO_WORD` past the last.
    """

    sequences: torch.Tensor
    positions: torch.Tensor
    shares: torch.Tensor
    named: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """Sequences of one layout.

    Attributes:
        size: (width, height) of the pictures.
        tiles: ``[b, num_tiles, 3, tile_size, tile_size]`` float32.
        before: ``[b, n]`` int64, ids before the visual tokens.
        behind: ``[b, m]`` int64, ids behind them: question and masked canvas.
        targets: ``[b, m]`` int64, the same without masks.
        weights: ``[b, m]`` float32, of the cross-entropy; 0 where nothing is masked.
        shown: ``[b, num_visual_tokens]`` int64, the number of the thing that a visual
            token shows, from 0 in reading order; `NO_THING` where it shows none.
        words: ``[b, num_things, 5]`` int64, the words for every thing: colour, kind,
            row, column, and its number, from 1 in reading order.
        sought: of the one-word answers.
    """

    size: tuple[int, int]
    tiles: torch.Tensor
    before: torch.Tensor
    behind: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    shown: torch.Tensor
    words: torch.Tensor
    sought: Sought


@dataclass(frozen=True)
class _Turn:
    """A question and its answer in tokens: ``prompt`` begins behind what precedes."""

    question: Question
    prompt: list[int]
    answer: list[int]


def make_batch(encoder: Tokenizer, stage: Stage, seed: str, step: int) -> Batch:
    rng = random.Random(f"{seed} {step}")
    (size,) = rng.choices(list(stage.sizes), list(stage.sizes.values()))
    (dialogue,) = rng.choices(*zip(*stage.dialogues, strict=True))
    scenes: list[Scene] = []
    asked: list[list[Question]] = []
    while len(scenes) < dialogue.num_pictures:
        scene = pictures.draw_scene(rng, "train", size)
        found = _ask(rng, scene, dialogue)
        if found is not None:
            scenes.append(scene)
            asked.append(found)
    drawings = [pictures.draw(scene, rng) for scene in scenes]
    tiles = torch.stack([preprocess(d.image, GEOMETRY) for d in drawings])
    before = [prompts.prompt_ids(encoder, found[0].question)[0] for found in asked]
    turns = [_turns(encoder, found) for found in asked]

    (extra,) = rng.choices(list(stage.canvases), list(stage.canvases.values()))
    length = max(8, *(len(sequence[-1].answer) for sequence in turns)) + extra
    length += max(
        sum(len(turn.prompt) + len(turn.answer) for turn in sequence[:-1])
        + len(sequence[-1].prompt)
        for sequence in turns
    )
    rates = _mask_rates(rng, len(turns), dialogue.hidden)
    masked = [
        _mask_dialogue(rng, sequence, length, rate)
        for sequence, rate in zip(turns, rates, strict=True)
    ]
    behind, targets, weights = zip(*masked, strict=True)

    source = visual_plan(size, tiles.shape[1]).source
    shown = [_shown(scene, d) for scene, d in zip(scenes, drawings, strict=True)]
    return Batch(
        size,
        tiles,
        torch.tensor(before),
        torch.tensor(behind),
        torch.tensor(targets),
        torch.tensor(weights),
        torch.tensor(shown)[:, source],
        torch.tensor([_words(encoder, scene) for scene in scenes]),
        _sought(encoder, scenes, turns, behind),
    )


def _ask(rng: random.Random, scene: Scene, dialogue: Dialogue) -> list[Question] | None:
    """Different questions about a scene; None if there are not so many."""
    asked: dict[str, Question] = {}
    for _ in range(4 * dialogue.num_words):
        question = questions.ask(rng, scene, dialogue.words)
        if question is not None:
            asked[question.question] = question
        if len(asked) == dialogue.num_words:
            break
    if len(asked) < dialogue.num_words:
        return None
    if dialogue.has_sentence:
        kinds = dict.fromkeys(questions.SENTENCE_KINDS, 1.0)
        described = questions.ask(rng, scene, kinds)
        assert described is not None
        return [*asked.values(), described]
    return list(asked.values())


def _turns(encoder: Tokenizer, asked: Sequence[Question]) -> list[_Turn]:
    turns = []
    for number, question in enumerate(asked):
        if number == 0:
            _, prompt = prompts.prompt_ids(encoder, question.question)
        else:
            prompt = prompts.further_turn_ids(encoder, question.question)
        answer = encoder.encode(question.answer, add_special_tokens=False).ids
        turns.append(_Turn(question, prompt, [*answer, EOT_ID]))
    return turns


def _shown(scene: Scene, drawing: pictures.Drawing) -> list[int]:
    """Of every patch of every tile, and of the newline behind them."""
    patches = [thing for tile in patch_things(scene, drawing) for thing in tile]
    return [*(NO_THING if thing is None else thing for thing in patches), NO_THING]


def _words(encoder: Tokenizer, scene: Scene) -> list[list[int]]:
    return [
        [
            word_id(encoder, word)
            for word in (thing.colour, thing.kind, thing.row, thing.column, number)
        ]
        for number, thing in enumerate(scene.things, start=1)
    ]


def _sought(
    encoder: Tokenizer,
    scenes: Sequence[Scene],
    dialogues: Sequence[Sequence[_Turn]],
    behind: Sequence[Sequence[int]],
) -> Sought:
    words = (*pictures.COLOURS, *pictures.KINDS, *pictures.ROWS, *pictures.COLUMNS)
    names = {word_id(encoder, word) for word in words}
    sequences, positions, shares, named = [], [], [], []
    for number, (scene, turns) in enumerate(zip(scenes, dialogues, strict=True)):
        position = 0
        for turn in turns:
            position += len(turn.prompt)
            is_word = turn.question.task == "word"
            if is_word and behind[number][position] == MASK_ID:
                found = [id_ for id_ in turn.prompt if id_ in names]
                sequences.append(number)
                positions.append(position)
                shares.append(_shares(scene, turn.question))
                named.append(found + [NO_WORD] * (MAX_NAMED - len(found)))
            position += len(turn.answer)
    return Sought(
        torch.tensor(sequences, dtype=torch.long),
        torch.tensor(positions, dtype=torch.long),
        torch.tensor(shares).view(-1, len(pictures.ROWS) + 1),
        torch.tensor(named, dtype=torch.long).view(-1, MAX_NAMED),
    )


def _shares(scene: Scene, question: Question) -> list[float]:
    """As in `Sought.shares`."""
    about = [float(thing in question.about) for thing in scene.things]
    total = len(about) if question.kind in questions.COUNT_KINDS else max(1, sum(about))
    shares = [share / total for share in about]
    return [*shares, 1 - sum(shares)]


def _mask_rates(rng: random.Random, count: int, hidden: float) -> list[float]:
    """Spread over a batch, in random order; 1 for a share of ``hidden``."""
    shift = rng.random()
    rates = [max((shift + i / count) % 1, MIN_MASK_RATE) for i in range(count)]
    rng.shuffle(rates)
    return [1.0 if rng.random() < hidden else rate for rate in rates]


def _mask_dialogue(
    rng: random.Random,
    turns: Sequence[_Turn],
    length: int,
    rate: float,
) -> tuple[list[int], list[int], list[float]]:
    """The answers of all turns masked, the last one's canvas up to ``length``."""
    ids: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    for number, turn in enumerate(turns, start=1):
        is_last = number == len(turns)
        end = length - len(ids) if is_last else len(turn.prompt) + len(turn.answer)
        part = _mask(rng, turn.prompt, turn.answer, end, rate)
        ids += part[0]
        targets += part[1]
        weights += [weight / len(turns) for weight in part[2]]
    return ids, targets, weights


def _mask(
    rng: random.Random,
    prompt: Sequence[int],
    answer: Sequence[int],
    length: int,
    rate: float,
) -> tuple[list[int], list[int], list[float]]:
    """Ids with masks, ids without, and the weights of the masked positions.

    Every canvas position is masked with probability ``rate``, and one token of the
    answer in any case, so that no short answer is wasted. The weight of a position is
    one over its probability to be masked, the objective of the LLaDA papers. All the
    <|eot_id|> that fill the canvas together weigh as much as one token of the answer.
    """
    padding = length - len(prompt) - len(answer)
    assert padding >= 0, (length, len(prompt), len(answer))
    canvas = [*answer, *[EOT_ID] * padding]
    shares = [1.0] * len(answer) + [1 / max(padding, 1)] * padding
    num_words = len(answer) - 1
    chosen = rng.randrange(num_words)
    total = sum(shares)
    ids, weights = [], []
    for position, token in enumerate(canvas):
        odds = 1 / num_words if position < num_words else 0.0
        is_masked = position == chosen or rng.random() < rate
        ids.append(MASK_ID if is_masked else token)
        weight = shares[position] / total / (odds + (1 - odds) * rate)
        weights.append(weight if is_masked else 0.0)
    return [*prompt, *ids], [*prompt, *canvas], [0.0] * len(prompt) + weights
