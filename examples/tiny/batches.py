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
from examples.tiny.model import GEOMETRY, visual_plan
from examples.tiny.pictures import Drawing, Scene
from vllm_lladav.model.anyres import preprocess, select_best_resolution

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
NO_LABEL = -100


@dataclass(frozen=True)
class Stage:
    """How hard the batches are.

    Attributes:
        sizes: of the pictures, to their shares.
        words, sentences: kinds of questions, to their shares.
        sentence_share: of the batches.
        canvases: additional canvas length beyond the shortest, to its share.
        turns: questions about a picture in one dialogue, to their shares; where
            there is a sentence, it is the last one.
    """

    sizes: dict[tuple[int, int], float]
    words: dict[str, float]
    sentences: dict[str, float]
    sentence_share: float
    canvases: dict[int, float]
    turns: dict[int, float]


_ONE_TILE = {size: share for size, share in pictures.SIZES.items() if max(size) <= 96}
_WORDS = {
    **dict.fromkeys(questions.WORD_KINDS, 1.0),
    "place": 3.0,
    "count": 4.0,
    "yes-no": 4.0,
}
# In a dialogue other questions would give these answers away.
_DIALOGUE = {
    kind: 1.0 for kind in questions.WORD_KINDS if kind not in ("count", "yes-no")
}
STAGES = (
    Stage(
        sizes={(96, 96): 1},
        words={"colour-at": 1, "what-at": 1, "colour": 1, "shape": 1},
        sentences={"describe": 1},
        sentence_share=0.75,
        canvases={0: 1},
        turns={1: 1, 4: 4},
    ),
    Stage(
        sizes=_ONE_TILE,
        words=_WORDS,
        sentences={"describe": 1},
        sentence_share=0.6,
        canvases={0: 6, 8: 2, 16: 1},
        turns={1: 2, 5: 1},
    ),
    Stage(
        # Large pictures take long; their questions are the same.
        sizes={size: 8 if size == (96, 96) else 1 for size in pictures.SIZES},
        words=_WORDS,
        sentences={"describe": 1},
        sentence_share=0.5,
        canvases={0: 24, 8: 8, 24: 3, 56: 1, 100: 1},
        turns={1: 2, 5: 1},
    ),
)


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
        labels: ``[b, num_visual_tokens, 5]`` int64, the words for what a visual token
            shows: colour, kind, row, column, and the thing's number in reading order;
            `NO_LABEL` where it shows nothing.
    """

    size: tuple[int, int]
    tiles: torch.Tensor
    before: torch.Tensor
    behind: torch.Tensor
    targets: torch.Tensor
    weights: torch.Tensor
    labels: torch.Tensor


def make_batch(
    encoder: Tokenizer, stage: Stage, batch_size: int, seed: str, step: int
) -> Batch:
    rng = random.Random(f"{seed} {step}")
    size = _choose(rng, stage.sizes)
    is_sentence = rng.random() < stage.sentence_share
    num_turns = _choose(rng, stage.turns)
    tiles, labels, befores, dialogues = [], [], [], []
    while len(dialogues) < batch_size:
        scene = pictures.draw_scene(rng, "train", size)
        words = stage.words if num_turns == 1 else _DIALOGUE
        asked = _ask(rng, scene, words, num_turns - is_sentence)
        if is_sentence and asked is not None:
            described = questions.ask(rng, scene, stage.sentences)
            asked = None if described is None else [*asked, described]
        if asked is None:
            continue
        drawing = pictures.draw(scene, rng)
        tiles.append(preprocess(drawing.image, GEOMETRY))
        labels.append(_words(encoder, scene, patch_things(scene, drawing)))
        before, behind = prompts.prompt_ids(encoder, asked[0].question)
        befores.append(before)
        further = [prompts.further_turn_ids(encoder, q.question) for q in asked[1:]]
        answers = [
            [*encoder.encode(q.answer, add_special_tokens=False).ids, EOT_ID]
            for q in asked
        ]
        dialogues.append(list(zip([behind, *further], answers, strict=True)))
    shortest = max(len(dialogue[-1][1]) for dialogue in dialogues)
    length = max(shortest, 8) + _choose(rng, stage.canvases)
    length += max(
        sum(len(prompt) + len(answer) for prompt, answer in dialogue[:-1])
        + len(dialogue[-1][0])
        for dialogue in dialogues
    )
    shift = rng.random()
    rates = [(shift + i / batch_size) % 1 for i in range(batch_size)]
    rng.shuffle(rates)
    rows = [
        _mask_dialogue(rng, dialogue, length, max(rate, MIN_MASK_RATE))
        for dialogue, rate in zip(dialogues, rates, strict=True)
    ]
    behind, targets, weights = zip(*rows, strict=True)
    return Batch(
        size,
        torch.stack(tiles),
        torch.tensor(befores),
        torch.tensor(behind),
        torch.tensor(targets),
        torch.tensor(weights),
        torch.tensor(labels)[:, visual_plan(size, tiles[0].shape[0]).source],
    )


def _ask(
    rng: random.Random, scene: Scene, kinds: dict[str, float], count: int
) -> list[questions.Question] | None:
    """Different questions about a scene; None if there are not so many."""
    asked: dict[str, questions.Question] = {}
    if count == 0:
        return []
    for _ in range(4 * count):
        question = questions.ask(rng, scene, kinds)
        if question is not None:
            asked[question.question] = question
        if len(asked) == count:
            return list(asked.values())
    return None


def _words(
    encoder: Tokenizer, scene: Scene, shown: Sequence[Sequence[int | None]]
) -> list[list[int]]:
    """The labels of every patch of every tile, and of the newline behind them."""
    nothing = [NO_LABEL] * 5
    words = [
        [
            encoder.token_to_id(f"\u0120{word}")
            for word in (thing.colour, thing.kind, thing.row, thing.column, number)
        ]
        for number, thing in enumerate(scene.things, start=1)
    ]
    assert not any(None in ids for ids in words), scene
    found = [
        nothing if index is None else words[index] for tile in shown for index in tile
    ]
    return [*found, nothing]


def _choose(rng: random.Random, shares: dict) -> object:  # type: ignore[type-arg]
    return rng.choices(list(shares), list(shares.values()))[0]


def _mask_dialogue(
    rng: random.Random,
    dialogue: Sequence[tuple[Sequence[int], Sequence[int]]],
    length: int,
    rate: float,
) -> tuple[list[int], list[int], list[float]]:
    """The answers of all turns masked, the last one's canvas up to ``length``."""
    ids: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    for number, (prompt, answer) in enumerate(dialogue, start=1):
        is_last = number == len(dialogue)
        end = length - len(ids) if is_last else len(prompt) + len(answer)
        part = _mask(rng, prompt, answer, end, rate)
        ids += part[0]
        targets += part[1]
        weights += [weight / len(dialogue) for weight in part[2]]
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


@dataclass(frozen=True)
class PatchBatch:
    """Tiles and what their patches show, for the tower alone.

    Attributes:
        tiles: ``[n, 3, tile_size, tile_size]`` float32.
        labels: ``[n, tile_tokens, 4]`` int64, of the thing in a patch: colour, kind,
            row and column of its place, each counted from 1; 0 is nothing, -1 not to
            be told from the tile.
    """

    tiles: torch.Tensor
    labels: torch.Tensor


def make_patch_batch(num_pictures: int, seed: str, step: int) -> PatchBatch:
    rng = random.Random(f"{seed} patches {step}")
    tiles, labels = [], []
    for _ in range(num_pictures):
        scene = pictures.draw_scene(rng, "train")
        drawing = pictures.draw(scene, rng)
        found = preprocess(drawing.image, GEOMETRY)
        # Where a square picture fills one tile, both tiles are the same.
        first = 1 if scene.size == (96, 96) else 0
        tiles.append(found[first:])
        shown = patch_things(scene, drawing)
        for number, tile in enumerate(shown[first:], start=first):
            # One tile of several does not know where it is in the picture.
            knows_place = number == 0 or len(shown) == 2
            labels.append([_numbers(scene, index, knows_place) for index in tile])
    return PatchBatch(torch.cat(tiles), torch.tensor(labels))


def patch_things(scene: Scene, drawing: Drawing) -> list[list[int | None]]:
    """Per tile and patch the number of the thing around the patch's centre."""
    side, grid = GEOMETRY.tile_size, GEOMETRY.tile_grid
    width, height = scene.size
    canvas_width, canvas_height = select_best_resolution(scene.size, GEOMETRY.pinpoints)
    scale = min(canvas_width / width, canvas_height / height)
    left = (canvas_width - width * scale) / 2
    top = (canvas_height - height * scale) / 2
    centres = [(i + 0.5) * side / grid for i in range(grid)]
    # Per tile, where the centres are in the picture: columns, rows.
    places = [
        ([x * width / side for x in centres], [y * height / side for y in centres])
    ]
    for corner_y in range(0, canvas_height, side):
        for corner_x in range(0, canvas_width, side):
            columns = [(x + corner_x - left) / scale for x in centres]
            rows = [(y + corner_y - top) / scale for y in centres]
            places.append((columns, rows))
    margin = 0.02 * min(width, height)
    found = []
    for columns, rows in places:
        tile: list[int | None] = [None] * grid**2
        for index, (x0, y0, x1, y1) in enumerate(drawing.boxes):
            inside = [i for i, x in enumerate(columns) if x0 - margin < x < x1 + margin]
            for j, y in enumerate(rows):
                if y0 - margin < y < y1 + margin:
                    for i in inside:
                        tile[j * grid + i] = index
        found.append(tile)
    return found


def _numbers(scene: Scene, index: int | None, knows_place: bool) -> tuple[int, ...]:
    """As in `PatchBatch.labels`."""
    if index is None:
        return 0, 0, 0, 0
    thing = scene.things[index]
    colour = list(pictures.COLOURS).index(thing.colour)
    row, column = divmod(thing.place, 3) if knows_place else (-2, -2)
    return 1 + colour, 1 + pictures.KINDS.index(thing.kind), 1 + row, 1 + column
