# SPDX-License-Identifier: Apache-2.0
"""What training asks about which pictures, at the beginning and later.

A dialogue of six questions costs twice as much as one question. But questions of
existence and number give each other's answers away where they are answered, and
questions that name a thing say that it is there: so the two sorts are kept apart, and
most dialogues have all answers masked.
"""

from dataclasses import dataclass

from examples.tiny import pictures, questions


@dataclass(frozen=True)
class Dialogue:
    """What is asked about one picture.

    Attributes:
        words: kinds of one-word questions, to their shares.
        num_words: different questions of these kinds.
        has_sentence: whether a description is asked for behind them.
        hidden: share of the sequences in which all answers are masked.
        num_pictures: sequences of a batch, fewer where they are longer.
    """

    words: dict[str, float]
    num_words: int
    has_sentence: bool = False
    hidden: float = 0.0
    num_pictures: int = 40


@dataclass(frozen=True)
class Stage:
    """How hard the batches are.

    Attributes:
        sizes: of the pictures, to their shares.
        dialogues: each with its share of the batches.
        canvases: additional canvas length beyond the shortest, to its share.
    """

    sizes: dict[tuple[int, int], float]
    dialogues: tuple[tuple[Dialogue, float], ...]
    canvases: dict[int, float]


_ALL = Dialogue(
    {
        **dict.fromkeys(questions.WORD_KINDS, 1.0),
        "place": 3,
        "count": 3,
        "yes-no": 3,
    },
    num_words=1,
)
_DESCRIBE = Dialogue({}, num_words=0, has_sentence=True, num_pictures=24)
_FIND = Dialogue(
    {
        **dict.fromkeys(("colour", "shape", "letter", "digit"), 1.0),
        **dict.fromkeys(("what-at", "colour-at"), 1.0),
        "place": 4,
        "place-of-kind": 2,
        "place-of-colour": 2,
    },
    num_words=6,
    hidden=0.7,
    num_pictures=20,
)
_JUDGE = Dialogue(
    {
        "yes-no": 4,
        "yes-no-kind": 2,
        "yes-no-colour": 1,
        "count": 6,
        "count-kind": 3,
    },
    num_words=6,
    hidden=1.0,
    num_pictures=20,
)
STAGES = (
    Stage(
        sizes={(96, 96): 1},
        dialogues=((_DESCRIBE, 4), (_FIND, 4), (_JUDGE, 2)),
        canvases={0: 1},
    ),
    Stage(
        # Large pictures take long; their questions are the same.
        sizes={size: 10 if size == (96, 96) else 1 for size in pictures.SIZES},
        dialogues=((_ALL, 3), (_DESCRIBE, 2), (_FIND, 4), (_JUDGE, 4)),
        canvases={0: 30, 8: 6, 24: 1, 56: 1},
    ),
)
