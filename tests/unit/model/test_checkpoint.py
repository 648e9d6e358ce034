# SPDX-License-Identifier: Apache-2.0
"""A checkpoint that does not fit is refused with all of its problems at once."""

import math

import pytest
import torch

from vllm_lladav.model.checkpoint import checked_weights

EXPECTED = {"a.weight": (2, 3), "b.weight": (4,), "c.weight": (1, 1)}


def tensors(**shapes: tuple[int, ...]) -> list[tuple[str, torch.Tensor]]:
    return [
        (name.replace("_", "."), torch.zeros(shape)) for name, shape in shapes.items()
    ]


def is_unused(name: str) -> bool:
    return name.startswith("head.")


def test_what_fits_is_passed_on_in_order():
    given = tensors(c_weight=(1, 1), head_probe=(9,), a_weight=(2, 3), b_weight=(4,))
    passed = list(checked_weights(given, EXPECTED, is_unused))
    assert [name for name, _ in passed] == ["c.weight", "a.weight", "b.weight"]
    assert passed[1][1] is given[2][1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite(dtype: torch.dtype, number: float):
    given = tensors(a_weight=(2, 3), b_weight=(4,), c_weight=(1, 1))
    given = [(name, tensor.to(dtype)) for name, tensor in given]
    given[1][1][2] = number
    with pytest.raises(ValueError, match="tensor b.weight has numbers") as error:
        list(checked_weights(given, EXPECTED, is_unused))
    assert "(1 problems)" in str(error.value)


def test_all_problems_are_named_at_once():
    given = tensors(a_weight=(3, 2), d_weight=(5, 5), e_bias=(), head_probe=(9,))
    with pytest.raises(ValueError, match=r"\(5 problems\)") as error:
        list(checked_weights(given, EXPECTED, is_unused))
    problems = str(error.value).splitlines()[1:]
    assert [line.strip() for line in problems] == [
        "tensor a.weight has shape (3, 2), the config says (2, 3)",
        "unexpected tensor d.weight (5, 5)",
        "unexpected tensor e.bias ()",
        "missing tensor b.weight (4,)",
        "missing tensor c.weight (1, 1)",
    ]


def test_wrongly_shaped_tensors_are_not_passed_on():
    passed = []
    with pytest.raises(ValueError):
        for name, _ in checked_weights(
            tensors(a_weight=(3, 2), b_weight=(4,)), EXPECTED, is_unused
        ):
            passed.append(name)
    assert passed == ["b.weight"]


def test_nothing_is_read_ahead():
    """Weights are streamed: the first is passed on before the second is read."""

    def stream():
        yield "b.weight", torch.zeros(4)
        raise RuntimeError("read ahead")

    assert next(checked_weights(stream(), EXPECTED, is_unused))[0] == "b.weight"


def test_empty_checkpoint():
    with pytest.raises(ValueError, match=r"\(3 problems\)"):
        list(checked_weights([], EXPECTED, is_unused))
