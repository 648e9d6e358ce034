# SPDX-License-Identifier: Apache-2.0
"""Questions about a scene, with answers that follow from it.

One-word answers ("word") and descriptions ("sentence"); which question has which
``kind`` is in :data:`WORD_KINDS` and :data:`SENTENCE_KINDS`. The simpler ones of
:data:`LESSON_KINDS` are asked in training only. As a script, write pictures and
questions that training has never seen::

    python examples/tiny/questions.py OUT --count 200 --split heldout --seed 1

``OUT/questions.jsonl`` has one object per line: id, image (a file in OUT), question,
answer, task ("word" or "sentence") and kind.
"""

import argparse
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

if __package__:
    from examples.tiny import pictures
    from examples.tiny.pictures import Scene, Thing
else:
    import pictures
    from pictures import Scene, Thing

_WRITTEN = ("question", "answer", "task", "kind")
DESCRIBE = ("Describe the picture.", "Please describe the image in detail.")


@dataclass(frozen=True)
class Question:
    """One question and its answer.

    Attributes:
        about: the things that a one-word answer follows from; none where the answer
            is that there are none.
    """

    question: str
    answer: str
    task: str
    kind: str
    about: tuple[Thing, ...]


Found = tuple[str, str, Sequence[Thing]]
"""A question, its answer, and the things that it follows from."""
Asker = Callable[[random.Random, Scene], Found | None]
"""None where the scene does not allow the question."""


def ask(rng: random.Random, scene: Scene, kinds: dict[str, float]) -> Question | None:
    """Ask a question of one of ``kinds`` (to their weights); None if none fits."""
    names = list(kinds)
    while names:
        name = rng.choices(names, [kinds[name] for name in names])[0]
        found = _ASKERS[name](rng, scene)
        if found is not None:
            text, answer, about = found
            task = "sentence" if name in SENTENCE_KINDS else "word"
            return Question(text, answer, task, name, tuple(about))
        names.remove(name)
    return None


def place_name(thing: Thing) -> str:
    return f"{thing.row} {thing.column}"


def _unique(
    rng: random.Random, scene: Scene, key: Callable[[Thing], object]
) -> Thing | None:
    """A thing that no other one shares its ``key`` with; keys of None do not count."""
    counts = Counter(key(thing) for thing in scene.things)
    found = [t for t in scene.things if counts[key(t)] == 1 and key(t) is not None]
    return rng.choice(found) if found else None


def _group(kind: str) -> str:
    if kind in pictures.SHAPES:
        return "shape"
    return "letter" if kind in pictures.LETTERS else "digit"


def _colour(rng: random.Random, scene: Scene) -> Found | None:
    thing = _unique(rng, scene, lambda t: t.kind)
    return thing and (f"What colour is the {thing.kind}?", thing.colour, [thing])


def _named(group: str) -> Asker:
    def asker(rng: random.Random, scene: Scene) -> Found | None:
        thing = _unique(
            rng, scene, lambda t: t.colour if _group(t.kind) == group else None
        )
        return thing and (f"Which {group} is {thing.colour}?", thing.kind, [thing])

    return asker


def _place(rng: random.Random, scene: Scene) -> Found | None:
    thing = _unique(rng, scene, lambda t: (t.colour, t.kind))
    return thing and _where(f"{thing.colour} {thing.kind}", thing)


def _where(name: str, thing: Thing) -> Found:
    return f"Where is the {name}?", f"{thing.row}-{thing.column}", [thing]


def _colour_at(rng: random.Random, scene: Scene) -> Found:
    thing = rng.choice(scene.things)
    return f"Which colour is at {place_name(thing)}?", thing.colour, [thing]


def _what_at(rng: random.Random, scene: Scene) -> Found:
    thing = rng.choice(scene.things)
    return f"What is at {place_name(thing)}?", thing.kind, [thing]


def _count(rng: random.Random, scene: Scene) -> Found:
    """Things of a colour that is there or (rarely) is not."""
    colour = rng.choice(sorted({t.colour for t in scene.things}))
    if rng.random() < 0.2:
        colour = rng.choice(list(pictures.COLOURS))
    return _how_many(colour, [t for t in scene.things if t.colour == colour])


def _how_many(name: str, things: Sequence[Thing]) -> Found:
    return f"How many things are {name}?", str(len(things)), things


def _is_there(rng: random.Random, scene: Scene) -> Found | None:
    """Half of the answers are "no", most of them for a colour or kind that is there."""
    present = {(t.colour, t.kind) for t in scene.things}
    if rng.random() < 0.5:
        colour, kind = rng.choice(sorted(present))
        found = [t for t in scene.things if (t.colour, t.kind) == (colour, kind)]
        return f"Is there a {colour} {kind}?", "yes", found
    colours, kinds = list(pictures.COLOURS), list(pictures.KINDS)
    mode = rng.random()
    if mode < 0.7:
        kinds = sorted({kind for _, kind in present})
    if mode > 0.3:
        colours = sorted({colour for colour, _ in present})
    absent = sorted({(c, k) for c in colours for k in kinds} - present)
    if not absent:
        return None
    colour, kind = rng.choice(absent)
    return f"Is there a {colour} {kind}?", "no", []


def _describe(rng: random.Random, scene: Scene) -> Found:
    clauses = [f"a {t.colour} {t.kind} at {place_name(t)}" for t in scene.things]
    return rng.choices(DESCRIBE, (4, 1))[0], ", ".join(clauses) + ".", []


def _place_by(attribute: str) -> Asker:
    def asker(rng: random.Random, scene: Scene) -> Found | None:
        name = attrgetter(attribute)
        thing = _unique(rng, scene, name)
        return thing and _where(name(thing), thing)

    return asker


def _is_there_by(attribute: str, words: Sequence[str]) -> Asker:
    def asker(rng: random.Random, scene: Scene) -> Found:
        name = attrgetter(attribute)
        present = sorted({name(thing) for thing in scene.things})
        if rng.random() < 0.5:
            word = rng.choice(present)
            about = [thing for thing in scene.things if name(thing) == word]
            return f"Is there a {word}?", "yes", about
        absent = [word for word in words if word not in present]
        return f"Is there a {rng.choice(absent)}?", "no", []

    return asker


def _count_kind(rng: random.Random, scene: Scene) -> Found:
    kind = rng.choice(sorted({t.kind for t in scene.things}))
    if rng.random() < 0.2:
        kind = rng.choice(list(pictures.KINDS))
    return _how_many(kind, [t for t in scene.things if t.kind == kind])


WORD_KINDS: dict[str, Asker] = {
    "colour": _colour,
    "shape": _named("shape"),
    "letter": _named("letter"),
    "digit": _named("digit"),
    "place": _place,
    "colour-at": _colour_at,
    "what-at": _what_at,
    "count": _count,
    "yes-no": _is_there,
}
SENTENCE_KINDS: dict[str, Asker] = {"describe": _describe}
LESSON_KINDS: dict[str, Asker] = {
    "place-of-kind": _place_by("kind"),
    "place-of-colour": _place_by("colour"),
    "yes-no-kind": _is_there_by("kind", pictures.KINDS),
    "yes-no-colour": _is_there_by("colour", tuple(pictures.COLOURS)),
    "count-kind": _count_kind,
}
"""What "place" and "yes-no" ask by colour and kind, by one of them; "count" by kind."""
COUNT_KINDS = ("count", "count-kind")
_ASKERS = {**WORD_KINDS, **SENTENCE_KINDS, **LESSON_KINDS}


def write(directory: Path, count: int, split: pictures.Split, seed: int) -> None:
    """Write ``count`` questions, every second one a sentence, and their pictures."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"{split} {seed}")
    word = dict.fromkeys(WORD_KINDS, 1.0)
    sentence = dict.fromkeys(SENTENCE_KINDS, 1.0)
    lines: list[str] = []
    while len(lines) < count:
        scene = pictures.draw_scene(rng, split)
        found = ask(rng, scene, word if len(lines) % 2 == 0 else sentence)
        if found is None:
            continue
        number = len(lines) + 1
        file_name = f"{number:06d}.png"
        pictures.draw(scene, rng).image.save(directory / file_name)
        shown = {name: getattr(found, name) for name in _WRITTEN}
        lines.append(json.dumps({"id": number, "image": file_name, **shown}))
    text = "".join(f"{line}\n" for line in lines)
    (directory / "questions.jsonl").write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--split", choices=("train", "heldout"), default="heldout")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    write(arguments.directory, arguments.count, arguments.split, arguments.seed)


if __name__ == "__main__":
    main()
