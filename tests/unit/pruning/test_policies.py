# SPDX-License-Identifier: Apache-2.0
"""What every pruning method keeps to, and what each ranks by."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from vllm_lladav.pruning.params import QUERIES
from vllm_lladav.pruning.policies import POLICIES, policy_of
from vllm_lladav.pruning.policy import View, ViewShape
from vllm_lladav.pruning.scores import attention_received

PROPERTIES = {  # uses_queries, default_queries, is_random, is_adaptive, layers of 1-6
    "fastv": (True, "all", False, False, [4]),
    "aggregated": (True, "answer", False, False, [1, 2, 3, 4]),
    "adaptive": (True, "all", False, True, [4]),
    "similarity": (False, "all", False, False, [4]),
    "uniform": (False, "all", False, False, [4]),
    "random": (False, "all", True, False, [4]),
}
SHAPES = [
    ViewShape(
        rows=30, length=30, num_visual=20, num_heads=6, num_kv_heads=2, head_dim=8
    ),
    ViewShape(rows=1, length=17, num_visual=1, num_heads=2, num_kv_heads=2, head_dim=4),
    ViewShape(
        rows=5, length=90, num_visual=64, num_heads=4, num_kv_heads=1, head_dim=2
    ),
]
each_policy = pytest.mark.parametrize("name", POLICIES)
each_shape = pytest.mark.parametrize("shape", SHAPES)


def view_of(shape: ViewShape, seed: int = 0) -> View:
    """Noise. The rows that count are the last ones, the visual tokens the first."""
    generator = torch.Generator().manual_seed(seed)

    def heads(number: int) -> torch.Tensor:
        size = (shape.length, number, shape.head_dim)
        return torch.randn(size, generator=generator)

    return View(
        step=1,
        layer=4,
        query=heads(shape.num_heads),
        key=heads(shape.num_kv_heads),
        scale=0.3,
        rows=torch.arange(shape.length - shape.rows, shape.length),
        visual=torch.arange(shape.num_visual),
        num_kept=-(-shape.num_visual // 3),
        seed=seed,
        attention_received=attention_received,
    )


def test_names_in_the_order_of_the_lists():
    assert tuple(PROPERTIES) == POLICIES
    assert [policy_of(name).name for name in POLICIES] == list(POLICIES)


@each_policy
def test_properties(name: str):
    policy = policy_of(name)
    layers = [layer for layer in range(1, 7) if policy.observes(layer, 4)]
    assert PROPERTIES[name] == (
        policy.uses_queries,
        policy.default_queries,
        policy.is_random,
        policy.is_adaptive,
        layers,
    )


@each_policy
def test_contract(name: str):
    """Queries that are known, and scores when tokens go."""
    policy = policy_of(name)
    assert policy.default_queries in QUERIES
    for prune_layer in range(1, 9):
        assert policy.observes(prune_layer, prune_layer)


@each_policy
@each_shape
def test_scores(name: str, shape: ViewShape):
    """A finite number for each visual token, the same every time."""
    policy, view = policy_of(name), view_of(shape)
    scores = policy.score(view)
    assert scores.shape == (shape.num_visual,)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    assert torch.equal(scores, policy.score(view_of(shape)))


@each_policy
def test_scores_depend_on_what_is_said(name: str):
    """On the rows that count and on the seed, and on them alone, as declared."""
    policy, view = policy_of(name), view_of(SHAPES[0])
    scores = policy.score(view)
    other_rows = policy.score(replace(view, rows=view.rows[:2]))
    assert torch.equal(scores, other_rows) != policy.uses_queries
    other_seed = policy.score(replace(view, seed=1))
    assert torch.equal(scores, other_seed) != policy.is_random
    if not policy.is_random:
        policy.score(replace(view, seed=None))


@each_policy
@each_shape
def test_flops(name: str, shape: ViewShape):
    """What torch counts."""
    policy, view = policy_of(name), view_of(shape)
    with FlopCounterMode(display=False) as counter:
        policy.score(view)
    assert policy.flops(shape) == counter.get_total_flops()


@each_policy
def test_heads_of_ranks_add_up(name: str):
    """Scores of the ranks' heads sum to those of all heads, up to a common factor
    where heads do not matter."""
    policy, view = policy_of(name), view_of(SHAPES[0])
    halves = [
        replace(
            view, query=view.query[:, 3 * i : 3 * i + 3], key=view.key[:, i : i + 1]
        )
        for i in range(2)
    ]
    summed, whole = sum(policy.score(half) for half in halves), policy.score(view)
    factor = 1 if policy.flops(SHAPES[0]) else 2
    torch.testing.assert_close(summed, factor * whole)


@each_policy
def test_count(name: str):
    """Policies that are not adaptive leave what the plan leaves."""
    ranked = torch.tensor([0.4, 0.3, 0.2, 0.1])
    expected = {0.3: 1, 0.6: 2, 0.95: 4} if name == "adaptive" else {0.3: 3, 0.95: 3}
    for tau, count in expected.items():
        assert policy_of(name).count(ranked, 3, tau) == count


def test_attention_is_that_of_the_rows():
    """A token that the rows look at matters most to the policies of attention."""
    view = replace(view_of(SHAPES[0]), rows=torch.tensor([25]))
    view.query[25] = view.query[25, 0]
    view.key[7] = 9 * view.query[25, 0]
    for name in ("fastv", "aggregated", "adaptive"):
        assert policy_of(name).score(view).argmax() == 7


def test_similarity_prefers_the_unlike():
    view = view_of(SHAPES[0])
    view.key[1:20] = view.key[0] * torch.rand(19, 1, 1).add(0.5)
    view.key[12] = -view.key[0]
    best = policy_of("similarity").score(view).argsort(descending=True)[:2]
    assert set(best.tolist()) == {0, 12}


@given(st.integers(1, 200), st.data())
def test_uniform(length: int, data: st.DataObject):
    """num_kept tokens, at distances that differ by one at most."""
    num_kept = data.draw(st.integers(1, length))
    view = replace(view_of(SHAPES[0]), visual=torch.arange(length), num_kept=num_kept)
    kept = policy_of("uniform").score(view).nonzero()[:, 0]
    assert len(kept) == num_kept
    assert kept[0] == 0
    gaps = [*kept.diff().tolist(), length - int(kept[-1])]
    assert max(gaps) - min(gaps) <= 1


def test_nothing_but_scores_needs_torch():
    """Options and the capacity calculator do without."""
    code = """if True:
        import sys
        from vllm_lladav.pruning.params import PruneStage, PruningParams
        from vllm_lladav.pruning.policies import POLICIES, policy_of
        from vllm_lladav.pruning.policy import ViewShape
        for name in POLICIES:
            policy = policy_of(name)
            policy.flops(ViewShape(3, 9, 5, 2, 2, 4))
            policy.observes(1, 2), policy.uses_queries, policy.default_queries
            params = PruningParams((PruneStage(1, 1, 0.5),), name)
            params.is_random, params.is_adaptive
        assert len(POLICIES) > 5
        print(sorted({"torch", "vllm", "numpy", "transformers"} & set(sys.modules)))
    """
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
