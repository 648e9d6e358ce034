# SPDX-License-Identifier: Apache-2.0
"""Training batches of lladav-tiny, and the scaffold's losses."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.tiny import batches, export, pictures, questions, scaffold, tokenizer
from examples.tiny.batches import EOT_ID, MASK_ID, NO_THING, NO_WORD
from examples.tiny.curriculum import STAGES, Dialogue, Stage
from examples.tiny.model import Lladav

ENCODER = tokenizer.load()
WORDS = {*pictures.COLOURS, *pictures.KINDS, *pictures.ROWS, *pictures.COLUMNS}


def small_batch(kinds: dict[str, float], count: int, seed: str) -> batches.Batch:
    dialogue = Dialogue(kinds, count, hidden=1.0, num_pictures=4)
    stage = Stage({(96, 96): 1}, ((dialogue, 1),), {0: 1})
    return batches.make_batch(ENCODER, stage, seed, 0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(STAGES))
def test_masked_positions_are_the_ones_that_are_learned(seed: int, stage: Stage):
    batch = batches.make_batch(ENCODER, stage, "test", seed)
    assert torch.equal(batch.weights > 0, batch.behind == MASK_ID)
    is_open = batch.behind != MASK_ID
    assert torch.equal(batch.behind[is_open], batch.targets[is_open])
    assert not (batch.targets == MASK_ID).any()
    assert (batch.targets[:, -1] == EOT_ID).all()
    assert (batch.weights > 0).any(dim=1).all()
    again = batches.make_batch(ENCODER, stage, "test", seed)
    assert torch.equal(batch.tiles, again.tiles)
    assert torch.equal(batch.behind, again.behind)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(STAGES))
def test_what_answers_follow_from(seed: int, stage: Stage):
    batch = batches.make_batch(ENCODER, stage, "test", seed)
    sought = batch.sought
    at = sought.sequences, sought.positions
    assert (batch.behind[at] == MASK_ID).all()
    torch.testing.assert_close(sought.shares.sum(1), torch.ones(len(at[0])))
    assert (sought.shares >= 0).all()
    for ids in sought.named.tolist():
        named = [ENCODER.decode([id_]).strip() for id_ in ids if id_ != NO_WORD]
        assert len(named) >= 1 and set(named) <= WORDS
    num_things = batch.words.shape[1]
    assert ((batch.shown >= NO_THING) & (batch.shown < num_things)).all()


@pytest.mark.parametrize("kind", [*questions.WORD_KINDS, *questions.LESSON_KINDS])
def test_shares_agree_with_the_answers(kind: str):
    """Counts, yes and no, and one thing's colour, kind or place."""
    batch = small_batch({kind: 1.0}, 1, kind)
    sought = batch.sought
    answers = batch.targets[sought.sequences, sought.positions].tolist()
    assert len(answers) == 4
    for number, (id_, shares) in enumerate(zip(answers, sought.shares, strict=True)):
        answer = ENCODER.decode([id_])
        *things, nothing = shares.tolist()
        if kind in questions.COUNT_KINDS:
            assert nothing == pytest.approx(1 - int(answer) / len(things))
        elif kind.startswith("yes-no"):
            assert nothing == (answer == "no")
        else:
            assert nothing == 0
            thing = things.index(1.0)
            words = {ENCODER.decode([w]).strip() for w in batch.words[number, thing]}
            assert answer in words


def test_uniform_attention_counts_tokens():
    """Where all keys are zero, a thing has its share of the tokens."""
    torch.manual_seed(0)
    model = Lladav(export.vocab_rows())
    finder = model.model.layers[scaffold.FIND_LAYER - 1].self_attn
    finder.k_proj.weight.data.zero_()
    batch = small_batch({"place": 1.0}, 2, "uniform")
    sought = batch.sought
    num_visual = batch.shown.shape[1]
    before = batch.before.shape[1]
    length = before + num_visual + batch.behind.shape[1]
    hidden = torch.randn(len(batch.behind), length, model.lm_head.in_features)
    at = sought.sequences, sought.positions + before + num_visual
    mass = scaffold.attention_mass(model, hidden, at, batch)
    for row, sequence in zip(mass, sought.sequences, strict=True):
        shown = batch.shown[sequence]
        tokens = [int((shown == thing).sum()) for thing in range(3)]
        expected = torch.tensor([*tokens, length - num_visual]) / length
        torch.testing.assert_close(row, expected)


def test_every_loss_reaches_the_model():
    torch.manual_seed(0)
    model = Lladav(export.vocab_rows())
    batch = small_batch({"yes-no": 1.0, "count": 1.0}, 2, "losses")
    visual = model.visual_embeddings(batch.tiles, batch.size)
    outputs = model.layer_outputs(model.embed(visual, batch.before, batch.behind))
    found = scaffold.losses(model, batch, outputs)
    assert set(found) == set(scaffold.WEIGHTS)
    for name, loss in found.items():
        model.zero_grad()
        loss.backward(retain_graph=True)
        gradient = model.model.embed_tokens.weight.grad
        assert torch.isfinite(loss) and gradient is not None, name
        assert gradient.abs().sum() > 0, name


def test_descriptions_have_no_answers_to_find():
    dialogue = Dialogue({}, 0, has_sentence=True, num_pictures=2)
    stage = Stage({(96, 96): 1}, ((dialogue, 1),), {8: 1})
    batch = batches.make_batch(ENCODER, stage, "describe", 0)
    assert len(batch.sought.sequences) == 0
    scene = pictures.draw_scene(random.Random(0), "train")
    described = questions.ask(random.Random(0), scene, {"describe": 1.0})
    assert described is not None and described.about == ()
