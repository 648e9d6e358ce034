# SPDX-License-Identifier: Apache-2.0
"""What pruning visual tokens saves: arithmetic counted in the engine, and wall time.

    python benchmarks/pruning_flops.py

Sends one request at a time, with an image that the engine has not seen, with and
without pruning:

1. A counting pass adds up, in the worker, the floating-point operations of every
   matrix product, convolution and attention that runs, from the shapes that the
   kernels are called with. They are compared with the formula of
   ``vllm_lladav/flops.py``, which must be within 2%.
2. Timed passes take turns: unpruned, pruned, pruned, unpruned, ... The wall time is
   that of the whole request, image processing included.

"Gain" is the share saved. Wall gain over FLOP gain says how much of the saved
arithmetic is saved time; the table shows where the rest goes. For CPUs: it counts in
vLLM's CPU kernels.
"""

import argparse
import json
import os
import pickle
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from common import machine, noise_image, parse_size
from torch.utils._python_dispatch import TorchDispatchMode

from vllm_lladav.model.lladav.family import LLADAV
from vllm_lladav.tools.flops import request_flops

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
# Functions are sent to the worker to install the probe there.
os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")

LARGEST_DEVIATION = 0.02
LARGEST_IMAGE_TOKENS = 4096
QUESTION = "Please describe the image in detail."

# --- in the worker ----------------------------------------------------------------


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

    from vllm_lladav.worker import sampler
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
        (sampler, "greedy_tokens", "ranking"),
        (sampler, "chosen_probability", "ranking"),
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


def describe_model(worker: Any) -> bytes:
    """Its shape and the geometry of its tiles, pickled: vLLM would make dictionaries
    of them."""
    from vllm_lladav.model.lladav.vision import geometry_from_config

    model = worker.get_model()
    shape = LLADAV.shape(model.config, model.padded_vocab_size)
    return pickle.dumps((shape, geometry_from_config(model.config)))


# --- in the front end -------------------------------------------------------------


class Bench:
    """An engine with the probe, and the settings of all requests."""

    def __init__(self, args: argparse.Namespace) -> None:
        from vllm import LLM

        self.args = args
        self.num_requests = 0
        self.llm = LLM(
            str(args.model),
            dtype="float32",
            max_model_len=LARGEST_IMAGE_TOKENS + args.gen_length,
            max_num_seqs=1,
            kv_cache_memory_bytes=1 << 28,
            limit_mm_per_prompt={"image": 1},
            additional_config={"lladav": {"plugin": "pruning"}},
        )
        self.llm.collective_rpc(install_probe)
        (description,) = self.llm.collective_rpc(describe_model)
        self.shape, self.geometry = pickle.loads(description)
        self.layer = args.layer or -(-self.shape.num_layers // 2)

    def run(
        self, size: tuple[int, int], rate: float, steps: int = 0, count: bool = False
    ) -> dict[str, Any]:
        """One request with a new image of noise. Times are in seconds."""
        from vllm import SamplingParams

        self.num_requests += 1
        params = SamplingParams(
            max_tokens=self.args.gen_length,
            temperature=0,
            ignore_eos=True,
            detokenize=False,
            extra_args={
                "prune_rate": rate,
                "prune_layer": self.layer,
                "gen_length": self.args.gen_length,
                "block_length": self.args.gen_length,
                "steps": steps or self.args.steps,
            },
        )
        content = [
            {"type": "image_pil", "image_pil": noise_image(size, self.num_requests)},
            {"type": "text", "text": QUESTION},
        ]
        self.llm.collective_rpc(start_request, args=(count,))
        start = time.perf_counter()
        (output,) = self.llm.chat(
            [{"role": "user", "content": content}],
            params,
            use_tqdm=False,
        )
        wall = time.perf_counter() - start
        (figures,) = self.llm.collective_rpc(take_figures)
        prompt_len = len(output.prompt_token_ids or ())
        return {"wall": wall, "prompt_len": prompt_len, **figures}

    def formula(self, size: tuple[int, int], rate: float, prompt_len: int) -> Any:
        """The same request by the formula."""
        from vllm_lladav.denoising.params import DenoisingParams
        from vllm_lladav.denoising.plan import StepPlan
        from vllm_lladav.model.lladav.anyres import num_visual_tokens, tile_layout
        from vllm_lladav.pruning.params import PruneStage, PruningParams

        stages = (PruneStage(1, self.layer, rate),) if rate else ()
        length = self.args.gen_length
        params = DenoisingParams(
            gen_length=length,
            block_length=length,
            steps=self.args.steps,
            temperature=0.0,
            remasking="low_confidence",
            seed=None,
            max_answer_tokens=length,
            pruning=PruningParams(stages) if stages else None,
        )
        columns, rows = tile_layout(size, self.geometry)
        plan = StepPlan(params, prompt_len, (num_visual_tokens(*size, self.geometry),))
        return request_flops(self.shape, plan, num_tiles=1 + rows * columns)


def counted_parts(figures: dict[str, Any]) -> dict[str, int]:
    """Counted operations under the names that the formula has for the parts."""
    names = {"decoder": "projections", "pruning": "scores"}
    parts: Counter = Counter()
    for key, flops in figures["flops"].items():
        part = key.split()[1]
        parts[names.get(part, part)] += flops
    return dict(parts)


def time_parts(figures: dict[str, Any]) -> dict[str, float]:
    """Seconds of a request by where they go. They add up to its wall time."""
    seconds = Counter(figures["seconds"])

    def both(*parts: str) -> float:
        return sum(seconds[f"{phase} {p}"] for p in parts for phase in PHASES)

    parts = {
        "vision tower": both("vision"),
        "first step: decoder": seconds["first decoder"] + seconds["first attention"],
        "later steps: linear": seconds["later decoder"],
        "later steps: attention": seconds["later attention"],
        "prune points": both("pruning"),
        "logits": both("head"),
        "passes over logits": both("ranking"),
    }
    return {**parts, "outside the model": figures["wall"] - sum(parts.values())}


PHASES = ("first", "later")


def measure(bench: Bench, size: tuple[int, int]) -> dict[str, Any]:
    """All figures for images of one size."""
    rates = {"unpruned": 0.0, "pruned": bench.args.rate}
    report: dict[str, Any] = {"image": size, "runs": {name: [] for name in rates}}
    for name, rate in rates.items():
        counted = bench.run(size, rate, count=True)
        formula = bench.formula(size, rate, counted["prompt_len"])
        parts = counted_parts(counted)
        report[name] = {
            "prompt_len": counted["prompt_len"],
            "steps": counted["steps"],
            "counted": parts,
            "counted_total": sum(parts.values()),
            "formula": asdict(formula),
            "formula_total": formula.total,
            "deviation": formula.total / sum(parts.values()) - 1,
            "operators": counted["operators"],
        }
    whole, pruned = (report[name]["counted_total"] for name in rates)
    report["flop_gain"] = 1 - pruned / whole
    if not bench.args.repeats:
        return report
    for rate in rates.values():  # Kernels are prepared for these shapes.
        bench.run(size, rate, steps=2)
    for repeat in range(bench.args.repeats):
        for name in list(rates)[:: -1 if repeat % 2 else 1]:
            report["runs"][name].append(bench.run(size, rates[name]))
    add_times(report)
    return report


def add_times(report: dict[str, Any]) -> None:
    """Medians over the repeats, and the loss by part.

    Were all time saved as arithmetic is, every part would take ``1 - flop_gain`` of
    what it takes unpruned; what it takes beyond is its loss. Losses add up to the
    difference of the two gains (nearly, where medians are taken of several repeats).
    """
    walls, parts = {}, {}
    for name, runs in report["runs"].items():
        walls[name] = statistics.median(run["wall"] for run in runs)
        split = [time_parts(run) for run in runs]
        parts[name] = {
            part: statistics.median(each[part] for each in split) for part in split[0]
        }
    report["wall"], report["parts"] = walls, parts
    report["wall_gain"] = 1 - walls["pruned"] / walls["unpruned"]
    report["wall_over_flop_gain"] = report["wall_gain"] / report["flop_gain"]
    report["loss"] = {
        part: (parts["pruned"][part] - (1 - report["flop_gain"]) * seconds)
        / walls["unpruned"]
        for part, seconds in parts["unpruned"].items()
    }


def show(report: dict[str, Any]) -> None:
    width, height = report["image"]
    print(f"\nimage of {width}x{height} pixels")
    for name in ("unpruned", "pruned"):
        row = report[name]
        shares = ", ".join(
            f"{part} {flops / row['counted_total']:.1%}"
            for part, flops in sorted(row["counted"].items(), key=lambda kv: -kv[1])
        )
        print(
            f"  {name:9s} prompt {row['prompt_len']}, {row['steps']} steps: "
            f"{row['counted_total'] / 1e9:.1f} GFLOP counted, "
            f"{row['formula_total'] / 1e9:.1f} by the formula "
            f"({row['deviation']:+.2%})\n            {shares}"
        )
    print(f"  FLOP gain {report['flop_gain']:.1%}")
    if "wall" not in report:
        return
    walls, parts = report["wall"], report["parts"]
    for name, runs in report["runs"].items():
        each = ", ".join(f"{run['wall']:.2f}" for run in runs)
        print(f"  {name:9s} {walls[name]:8.2f} s  ({each})")
    print(
        f"  wall gain {report['wall_gain']:.1%}, "
        f"{report['wall_over_flop_gain']:.2f} of the FLOP gain"
    )
    print(f"  {'':24s}{'unpruned':>10s}{'pruned':>10s}{'loss':>10s}")
    for part, seconds in parts["unpruned"].items():
        print(
            f"  {part:24s}{seconds:8.2f} s{parts['pruned'][part]:8.2f} s"
            f"{report['loss'][part]:10.1%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog="With the defaults about 10 minutes on 2 quiet cores, half of them for "
        "counting; every further repeat adds 5. --image 384x384 takes about 3.",
    )
    parser.add_argument(
        "--model", type=Path, help="checkpoint; default: the mid-size random one"
    )
    parser.add_argument(
        "--image",
        type=parse_size,
        nargs="+",
        default=[(384, 384), (700, 500)],
        metavar="WxH",
        help="pixels; the default is a square and an image of four tiles",
    )
    parser.add_argument("--gen-length", type=int, default=64)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0.75)
    parser.add_argument("--layer", type=int, help="default: half the depth")
    parser.add_argument(
        "--repeats", type=int, default=1, help="timed passes of each; 0: count only"
    )
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()

    if args.model is None:
        from midsize import ensure_midsize

        args.model = ensure_midsize()

    bench = Bench(args)
    reports = []
    for size in args.image:
        reports.append(measure(bench, size))
        show(reports[-1])
    if args.output:
        settings = {
            name: getattr(args, name)
            for name in ("gen_length", "steps", "rate", "repeats")
        }
        figures = {
            "machine": machine(),
            "settings": {**settings, "layer": bench.layer},
            "model": asdict(bench.shape),
            "images": reports,
        }
        args.output.write_text(json.dumps(figures, indent=2))
    worst = max(
        abs(report[name]["deviation"])
        for report in reports
        for name in ("unpruned", "pruned")
    )
    if worst > LARGEST_DEVIATION:
        raise SystemExit(f"the formula is {worst:.2%} off what was counted")


if __name__ == "__main__":
    main()
