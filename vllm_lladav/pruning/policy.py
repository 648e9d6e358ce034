# SPDX-License-Identifier: Apache-2.0
"""What a pruning method sees, and what it decides.

A method is a :class:`Policy` in a file of ``policies/``. It scores the visual tokens
of one request by what a :class:`View` shows of it, and may let fewer stay than the
plan allows. What methods must not differ in is the engine's: text always stays, every
image keeps a token, ties go to the lower position, at most the planned number stays,
and kept tokens move up to compact slots.

Options, the scheduler and ``vllm-lladav capacity`` ask for names, properties and
operations where no tensor is at hand, and ``--help`` must not wait for torch. So this
file and those in ``policies/`` import torch only inside of what computes with it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class View:
    """What a policy sees of one request at one place of one denoising step.

    A further input is a further field: None where the place has none (a layer has no
    projector output), and equal on all tensor-parallel ranks or a sum over their
    heads.

    Attributes:
        step: denoising step, counted from 1.
        layer: decoder layer that has just run, counted from 1.
        query: ``[n, heads, head_dim]``, rotary embedding applied; the heads of this
            rank.
        key: ``[n, kv_heads, head_dim]``, the same.
        scale: of the attention.
        rows: ``[r]``, int64: positions whose attention counts.
        visual: ``[m]``, int64: positions of the visual tokens.
        num_kept: how many of them stay; at most, if the policy is adaptive.
        seed: of the request; the same on all ranks.
        attention_received: ``scores.attention_received``, or the kernel that a GPU
            runs instead: ``(query, key, scale, columns)`` -> ``[m]``, float32.
    """

    step: int
    layer: int
    query: "torch.Tensor"
    key: "torch.Tensor"
    scale: float
    rows: "torch.Tensor"
    visual: "torch.Tensor"
    num_kept: int
    seed: int | None
    attention_received: (
        "Callable[[torch.Tensor, torch.Tensor, float, torch.Tensor], torch.Tensor]"
    )


class ViewShape(NamedTuple):
    """Sizes of a :class:`View`, over all tensor-parallel ranks.

    Attributes:
        rows: whose attention counts.
        length: tokens of the request.
        num_visual: of these.
    """

    rows: int
    length: int
    num_visual: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


class Policy(ABC):
    """A pruning method.

    Attributes:
        name: in flags, requests and reports.
        uses_queries: whether it matters to the scores whose attention counts.
        default_queries: whose attention counts if nobody says.
        is_random: whether it draws from the request's seed.
    """

    name: ClassVar[str]
    uses_queries: ClassVar[bool] = False
    default_queries: ClassVar[str] = "all"
    is_random: ClassVar[bool] = False

    @property
    def is_adaptive(self) -> bool:
        """Whether the number that stays follows from the scores, so that the plan
        knows only the largest one."""
        return type(self).count is not Policy.count

    def observes(self, layer: int, prune_layer: int) -> bool:
        """Whether it scores after ``layer`` if tokens go after ``prune_layer``, which
        is not before it. At ``prune_layer`` at the latest it must."""
        return layer == prune_layer

    @abstractmethod
    def score(self, view: View) -> "torch.Tensor":
        """``[m]``, float32: how much each visual token matters; higher is better.

        The scores of the layers that are observed, and of the tensor-parallel ranks,
        which hold different heads, are added up.
        """

    def flops(self, shape: ViewShape) -> int:
        """Floating-point operations of :meth:`score`'s matrix products, two per
        multiply and add."""
        return 0

    def count(self, ranked: "torch.Tensor", num_kept: int, tau: float) -> int:
        """How many of the best stay: bounded by ``num_kept``, which the plan has
        counted on, and by the number of images.

        Args:
            ranked: ``[m]``, float32: scores, averaged over layers and heads, from the
                best token to the worst; the best of every image are ahead.
            num_kept: what ``rate`` leaves.
            tau: share of the attention mass that the request wants to keep.
        """
        return num_kept
