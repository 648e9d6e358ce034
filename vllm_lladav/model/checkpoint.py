# SPDX-License-Identifier: Apache-2.0
"""A checkpoint that does not fit its config is refused, with everything named."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch

Weight = tuple[str, torch.Tensor]


def checked_weights(
    weights: Iterable[Weight],
    expected: Mapping[str, tuple[int, ...]],
    is_unused: Callable[[str], bool],
) -> Iterator[Weight]:
    """Pass on the tensors that are expected; complain about all others at the end.

    Args:
        weights: (official name, tensor), as read from the files.
        expected: shape of every tensor that must be there.
        is_unused: whether a name may be there and is left out.

    Raises:
        ValueError: after the last tensor, naming every missing, unexpected and
            wrongly shaped one, and those with numbers that are not finite, which would
            make every answer an error.
    """
    missing = dict(expected)
    problems = []
    for name, weight in weights:
        shape = tuple(weight.shape)
        if name not in expected:
            if not is_unused(name):
                problems.append(f"unexpected tensor {name} {shape}")
            continue
        missing.pop(name, None)
        if shape != expected[name]:
            problems.append(
                f"tensor {name} has shape {shape}, the config says {expected[name]}"
            )
            continue
        if not _is_finite(weight):
            problems.append(f"tensor {name} has numbers that are not finite")
        yield name, weight
    problems += [f"missing tensor {name} {shape}" for name, shape in missing.items()]
    if problems:
        raise ValueError(
            f"the checkpoint does not fit its config ({len(problems)} problems):\n  "
            + "\n  ".join(problems)
        )


def _is_finite(weight: torch.Tensor) -> bool:
    """A second and a half for the 8B on two cores."""
    if weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return True  # Quantised: nothing here can tell.
    return bool(torch.stack(weight.aminmax()).isfinite().all())
