# SPDX-License-Identifier: Apache-2.0
"""Counts, in the worker, the operations and the seconds of a request.

For ``pruning_flops.py``. Its functions that take a ``worker`` are sent there
(``LLM.collective_rpc``). For CPUs: it counts in vLLM's CPU kernels.
"""

import time
from collections import Counter
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Probe(TorchDispatchMode):
    """Seconds, and floating-point operations while it is entered, by phase (``first``
    step or ``later``) and part of the model.

    As a dispatch mode it sees torch's own products. What hides from it, vLLM's kernels
    and what runs within vLLM's opaque operators, is wrapped where it is called.
    """

    def __init__(self) -> None:
        # Not a global of this module: those are pickled for the worker.
        from torch.utils.flop_counter import flop_registry

        super().__init__()
        self.formulas = flop_registry
        self.is_counting = False
        self.reset()

    def reset(self) -> None:
        self.seconds: Counter = Counter()
        self.flops: Counter = Counter()
        self.operators: Counter = Counter()
        self.num_steps = 0
        self.parts: list[str] = []
        self.since = 0.0

    @property
    def key(self) -> tuple[str, str]:
        phase = "first" if self.num_steps < 2 else "later"
        return phase, self.parts[-1] if self.parts else "outside"

    def part(self, name: str, function: Callable) -> Callable:
        """``function``, whose time and operations are those of a part; time within
        an inner part counts there only."""

        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self._turn()
            self.parts.append(name)
            self.num_steps += name == "decoder"
            try:
                return function(*args, **kwargs)
            finally:
                self._turn()
                self.parts.pop()

        return wrapper

    def _turn(self) -> None:
        now = time.perf_counter()
        if self.parts:
            self.seconds[self.key] += now - self.since
        self.since = now

    def kernel(self, function: Callable, formula: Callable) -> Callable:
        """``function``, counted by ``formula`` of its result and arguments instead of
        by what torch dispatches within it."""

        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            is_counting, self.is_counting = self.is_counting, False
            try:
                result = function(*args, **kwargs)
            finally:
                self.is_counting = is_counting
            if is_counting:
                self.count(function.__name__, formula(result, *args, **kwargs))
            return result

        return wrapper

    def count(self, operator: str, flops: int) -> None:
        self.flops[self.key] += flops
        self.operators[operator] += flops

    def counted(self, function: Callable) -> Callable:
        """``function``, with the dispatch mode on if this is a counting pass."""

        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if not self.is_counting:
                return function(*args, **kwargs)
            with self:
                return function(*args, **kwargs)

        return wrapper

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet not in self.formulas:
            # Composite operators, such as matmul, hide the products.
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if self.is_counting:
            formula = self.formulas.get(packet)
            flops = formula(*args, **kwargs, out_val=result) if formula else 0
            if flops or func.namespace != "aten":
                self.count(str(packet), flops)
        return result


def linear_flops(result: Any, _: Any, x: Any, *args: Any, **kwargs: Any) -> int:
    """Of ``onednn_mm(weight, x, ...)``."""
    return 2 * x.numel() * result.shape[-1]


def packed_linear_flops(result: Any, x: Any, *args: Any, **kwargs: Any) -> int:
    """Of ``weight_packed_linear_cpu(x, ...)``."""
    return 2 * x.numel() * result.shape[-1]


def paged_attention_flops(result: Any, **kwargs: Any) -> int:
    """Of ``cpu_attention_with_kv_cache``: rows and keys of each request, as the
    kernel is told."""
    assert not kwargs["causal"]
    _, num_heads, head_dim = kwargs["query"].shape
    rows = kwargs["query_start_loc"].diff()
    products = int((rows.long() * kwargs["seq_lens"][: len(rows)].long()).sum())
    return 4 * products * num_heads * head_dim


def tile_attention_flops(
    result: Any, query: Any, key: Any, value: Any, **kwargs: Any
) -> int:
    """Of ``scaled_dot_product_attention``: ``[..., rows, head_dim]``."""
    return 2 * query.numel() * key.shape[-2] + 2 * result.numel() * key.shape[-2]


def install_probe(worker: Any) -> None:
    """Wrap what runs for a request."""
    from vllm import _custom_ops as kernels

    from vllm_lladav.worker import predictor
    from vllm_lladav.worker.cpu_attention import SplitAttentionImpl
    from vllm_lladav.worker.prune_pass import PrunePass

    model, runner = worker.get_model(), worker.model_runner
    probe = model.probe = Probe()
    for owner, name, part in (
        (model, "forward", "decoder"),
        (model, "compute_vocab_logits", "head"),
        (model.vision, "forward", "vision"),
        (PrunePass, "after_layer", "pruning"),
        (SplitAttentionImpl, "forward", "attention"),
        (predictor, "greedy_tokens", "ranking"),
        (predictor, "chosen_probability", "ranking"),
    ):
        setattr(owner, name, probe.part(part, getattr(owner, name)))
    functional: Any = torch.nn.functional
    for owner, name, formula in (
        (kernels, "onednn_mm", linear_flops),
        (kernels, "weight_packed_linear_cpu", packed_linear_flops),
        (kernels, "cpu_attention_with_kv_cache", paged_attention_flops),
        (functional, "scaled_dot_product_attention", tile_attention_flops),
    ):
        setattr(owner, name, probe.kernel(getattr(owner, name), formula))
    for name in ("execute_model", "sample_tokens"):
        setattr(runner, name, probe.counted(getattr(runner, name)))


def start_request(worker: Any, is_counting: bool) -> None:
    """Forget what was measured so far."""
    probe = worker.get_model().probe
    probe.reset()
    probe.is_counting = is_counting


def take_figures(worker: Any) -> dict[str, Any]:
    """Since :func:`start_request`; keys are ``phase part``."""
    probe = worker.get_model().probe
    probe.is_counting = False
    return {
        "steps": probe.num_steps,
        "seconds": {" ".join(key): value for key, value in probe.seconds.items()},
        "flops": {" ".join(key): value for key, value in probe.flops.items()},
        "operators": dict(probe.operators),
    }
