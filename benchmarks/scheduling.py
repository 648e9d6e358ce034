# SPDX-License-Identifier: Apache-2.0
"""How long requests take under a rule of scheduling, by a clock of step costs.

    python benchmarks/scheduling.py

Drives the engine's own scheduler without a model: an iteration takes ``--base`` seconds
and, for each of its tokens, ``--full`` or ``--cached`` ones, for ``--knee`` tokens at
least. The defaults are those of the mid-size checkpoint on two CPU cores. Requests come
at random moments (Poisson), at ``--load`` of what the server can do, and some all at
once. Compared are the scheduler's rule and round-robin: every running request has a
step in each iteration, full steps are limited beside cached ones only.

Half a minute; the same ``--seed`` gives the same figures. With ``--engine`` a
real engine answers, by its own clock and rule: an hour with as many requests.
"""

import argparse
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from common import checkpoint, noise_images, render_question, write_figures
from engine import CORE_HERE, engine_options, sampling
from vllm import EngineArgs, SamplingParams
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
)
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from vllm_lladav.denoising.marks import FinishMark, block_mark
from vllm_lladav.denoising.params import RESOLVED_KEY, DenoisingParams
from vllm_lladav.options.reading import ADDITIONAL_CONFIG_KEY
from vllm_lladav.plugin import register
from vllm_lladav.pruning.params import PruneStage, PruningParams
from vllm_lladav.scheduler.batch import Batch
from vllm_lladav.scheduler.scheduler import DenoisingScheduler
from vllm_lladav.tools.engine import start_engine

TEXT_TOKENS, VISUAL_TOKENS = 190, 1485
"""Of a prompt with a square picture."""

KV_BLOCK = 128
LONGEST = 2048


@dataclass(frozen=True)
class Mode:
    """What a request computes.

    Attributes:
        params: of it.
        per_step: positions that a step transfers.
    """

    params: DenoisingParams
    per_step: int = 1

    @property
    def num_steps(self) -> int:
        return self.params.gen_length // self.per_step


def make_modes(gen_length: int, steps: int) -> dict[str, Mode]:
    """Exact and pruned requests of ``steps`` steps, and fast ones that are as sure of
    their answers as to transfer as many positions in a step."""
    exact = DenoisingParams(
        gen_length=gen_length,
        block_length=gen_length,
        steps=steps,
        max_answer_tokens=gen_length,
    )
    fast = replace(
        exact, block_length=32, steps=gen_length, cache="dual", refresh_interval=25
    )
    pruning = PruningParams((PruneStage(1, 4, 0.75),))
    per_step = gen_length // steps
    return {
        "exact": Mode(exact, per_step),
        "pruned": Mode(replace(exact, pruning=pruning), per_step),
        "fast": Mode(fast, per_step),
        "fast, one by one": Mode(fast),
    }


def make_request(name: str, mode: Mode) -> Request:
    """With an image that no other one has."""
    values = mode.params.to_values()
    sampling = SamplingParams(
        max_tokens=mode.params.gen_length, extra_args={RESOLVED_KEY: values}
    )
    image = MultiModalFeatureSpec(
        data=None,
        modality="image",
        identifier=name,
        mm_position=PlaceholderRange(offset=0, length=VISUAL_TOKENS),
    )
    prompt = [5] * (VISUAL_TOKENS + TEXT_TOKENS)
    return Request(name, prompt, sampling, None, mm_features=[image])


class RoundRobin(DenoisingScheduler):
    """A step of every running request in each iteration, as far as there is room; those
    that have waited longest first."""

    def _fill(self, batch: Batch) -> None:
        running, between = self._next_steps()
        batch.full_step_tokens = self._full_step_tokens if between else 0
        running += [request for request, _ in between]
        due = [*running, *self._admissible()]
        due.sort(key=self._waits_since)
        for request in due:
            self._run(request, batch)

    def _waits_since(self, request: Request) -> tuple[int, bool]:
        progress = self._progress[request.request_id]
        return progress.waits_since, progress.step.is_full


RULES = {"round-robin": RoundRobin, "least work first": DenoisingScheduler}


@dataclass
class Server:
    """A scheduler, a clock, and a worker that only counts.

    Attributes:
        seconds: on the clock.
        ended: when requests ended, by name.
    """

    args: argparse.Namespace
    config: Any
    rule: type[DenoisingScheduler]
    seconds: float = 0.0
    ended: dict[str, float] = field(default_factory=dict)
    _modes: dict[str, Mode] = field(default_factory=dict)
    _done: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        spec = FullAttentionSpec(
            block_size=KV_BLOCK, num_kv_heads=1, head_size=8, dtype=torch.float32
        )
        groups = [KVCacheGroupSpec(["layer"], spec)]
        self.scheduler = self.rule(
            self.config,
            KVCacheConfig(self.args.kv_blocks, [], groups),
            StructuredOutputManager(self.config),
            block_size=KV_BLOCK,
        )

    def run(self, arrivals: Sequence[tuple[float, Mode]]) -> list[float]:
        """Seconds that each request takes."""
        coming = list(enumerate(arrivals))[::-1]
        while coming or self.scheduler.has_requests():
            if not self.scheduler.has_requests():
                self.seconds = max(self.seconds, coming[-1][1][0])
            while coming and coming[-1][1][0] <= self.seconds:
                number, (_, mode) = coming.pop()
                self._add(f"r{number}", mode)
            output = self.scheduler.schedule()
            self.seconds += self._cost(output)
            self._receive(output)
        return [self.ended[f"r{i}"] - moment for i, (moment, _) in enumerate(arrivals)]

    def _add(self, name: str, mode: Mode) -> None:
        self._modes[name], self._done[name] = mode, 0
        self.scheduler.add_request(make_request(name, mode))

    def _cost(self, output: SchedulerOutput) -> float:
        """Of an iteration; a step of so many tokens is full."""
        args, rows = self.args, output.num_scheduled_tokens.values()
        if not rows:
            return 0.0
        full = sum(count for count in rows if count > LONGEST // 8)
        cached = sum(rows) - full
        return args.base + max(
            args.full * full + args.cached * cached, args.full * args.knee
        )

    def _receive(self, output: SchedulerOutput) -> None:
        names = list(output.num_scheduled_tokens)
        tokens = [self._step(name) for name in names]
        places = {name: index for index, name in enumerate(names)}
        result = ModelRunnerOutput(names, places, tokens)
        self.scheduler.update_from_output(output, result)

    def _step(self, name: str) -> list[int]:
        """What a worker would report."""
        mode = self._modes[name]
        self._done[name] += 1
        if self._done[name] == mode.num_steps:
            self.ended[name] = self.seconds
            return [FinishMark.LENGTH]
        if not mode.params.follows_blocks:
            return []
        return [
            block_mark(self._done[name] * mode.per_step // mode.params.block_length)
        ]


class RealServer:
    """An engine with the mid-size checkpoint. Requests that are sure of their answers
    are given fewer steps."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.num_started = 0
        options = engine_options(LONGEST, args.max_num_seqs)
        options["max_num_batched_tokens"] = args.token_budget
        plugin = options["additional_config"][ADDITIONAL_CONFIG_KEY]
        plugin["full_step_tokens"] = args.full_step_tokens
        self.llm = start_engine(checkpoint("mid"), CORE_HERE, **options)
        self.prompt = render_question(self.llm.get_tokenizer())

    def run(self, arrivals: Sequence[tuple[float, Mode]]) -> list[float]:
        """Seconds that each request takes."""
        engine, moments = self.llm.llm_engine, dict[str, float]()
        latencies = dict[str, float]()
        coming = list(arrivals)[::-1]
        start = time.perf_counter()
        while coming or engine.has_unfinished_requests():
            now = time.perf_counter() - start
            while coming and coming[-1][0] <= now:
                moment, mode = coming.pop()
                moments[self._add(mode)] = moment
            if not engine.has_unfinished_requests():
                time.sleep(max(coming[-1][0] - now, 0))
                continue
            outputs = engine.step()
            now = time.perf_counter() - start
            latencies |= {
                o.request_id: now - moments[o.request_id] for o in outputs if o.finished
            }
        self.seconds = time.perf_counter() - start
        return [latencies[name] for name in moments]

    def _add(self, mode: Mode) -> str:
        name, params = f"r{self.num_started}", mode.params
        self.num_started += 1
        image = noise_images((384, 384), 1)[0]
        xargs: dict[str, Any] = {
            "steps": mode.num_steps,
            "block_length": params.block_length,
            "cache": params.cache,
        }
        if params.cache != "none":
            xargs["refresh_interval"] = params.refresh_interval
        if params.pruning:
            (stage,) = params.pruning.stages
            xargs |= {"prune_rate": stage.rate, "prune_layer": stage.layer}
        self.llm.llm_engine.add_request(
            name,
            {"prompt": self.prompt, "multi_modal_data": {"image": image}},
            sampling(params.gen_length, **xargs),
        )
        return name


def make_config(args: argparse.Namespace) -> Any:
    """vLLM's own, of an engine that is not started."""
    register()
    config = EngineArgs(
        model="lladav-tiny",
        dtype="float32",
        block_size=KV_BLOCK,
        max_model_len=LONGEST,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.token_budget,
        kv_cache_memory_bytes=1 << 28,
        additional_config={
            ADDITIONAL_CONFIG_KEY: {"full_step_tokens": args.full_step_tokens}
        },
    ).create_engine_config()
    config.cache_config.num_gpu_blocks = args.kv_blocks
    return config


def poisson(
    chooser: random.Random, modes: Sequence[Mode], rate: float, number: int
) -> Iterator[tuple[float, Mode]]:
    """Moments, and what comes."""
    moment = 0.0
    for _ in range(number):
        moment += chooser.expovariate(rate)
        yield moment, chooser.choice(modes)


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def figures(latencies: Sequence[float], seconds: float) -> dict[str, float]:
    return {
        "mean": statistics.mean(latencies),
        "p99": percentile(latencies, 0.99),
        "per_second": len(latencies) / seconds,
    }


def compare(
    args: argparse.Namespace, config: Any, modes: Sequence[Mode]
) -> Iterator[dict[str, Any]]:
    """Every rule under the same arrivals."""
    chooser = random.Random(args.seed)
    crowd = [(0.0, chooser.choice(modes)) for _ in range(args.requests // 4)]
    full = Server(args, config, RoundRobin)
    full.run(crowd)
    capacity = len(crowd) / full.seconds
    burst = [(0.0, chooser.choice(modes)) for _ in range(args.burst)]
    rate = args.load * capacity
    stream = list(poisson(chooser, modes, rate, args.requests))
    for name, rule in RULES.items():
        for kind, arrivals in (("burst", burst), ("poisson", stream)):
            server = Server(args, config, rule)
            latencies = server.run(arrivals)
            yield {"rule": name, "kind": kind, **figures(latencies, server.seconds)}


def confirm(
    args: argparse.Namespace, server: RealServer, modes: Sequence[Mode]
) -> Iterator[dict[str, Any]]:
    """The engine's own rule, at ``--rate`` or at the burst's."""
    chooser = random.Random(args.seed)
    server.run([(0.0, mode) for mode in set(modes)])  # Kernels are prepared.
    burst = [(0.0, chooser.choice(modes)) for _ in range(args.burst)]
    found = figures(server.run(burst), server.seconds)
    yield {"rule": "engine", "kind": "burst", **found}
    rate = args.rate or args.load * found["per_second"]
    stream = list(poisson(chooser, modes, rate, args.requests))
    found = figures(server.run(stream), server.seconds)
    yield {"rule": "engine", "kind": "poisson", "rate": rate, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    seconds = {"type": float, "metavar": "SECONDS"}
    parser.add_argument("--base", default=0.003, help="of an iteration", **seconds)
    parser.add_argument(
        "--full", default=0.00055, help="of a token of a full step", **seconds
    )
    parser.add_argument(
        "--cached", default=0.0009, help="of a token of a cached step", **seconds
    )
    parser.add_argument(
        "--knee", type=int, default=16, help="tokens that cost as much as fewer"
    )
    parser.add_argument("--gen-length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument(
        "--load", type=float, default=0.7, help="share of round-robin's capacity"
    )
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--burst", type=int, default=8, help="requests at once")
    parser.add_argument("--max-num-seqs", type=int, default=128)
    parser.add_argument("--token-budget", type=int, default=16384)
    parser.add_argument("--kv-blocks", type=int, default=1000, help="of 128 tokens")
    parser.add_argument(
        "--full-step-tokens", type=int, default=2048, help="as the server's flag"
    )
    parser.add_argument("--engine", action="store_true", help="run a real one")
    parser.add_argument("--rate", type=float, help="requests per second, with --engine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--loads", nargs="+", help="exact, pruned, ... (default: all)")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    modes = make_modes(args.gen_length, args.steps)
    loads = {name: [mode] for name, mode in modes.items()}
    loads["mixed"] = list(modes.values())
    server = RealServer(args) if args.engine else None
    config = None if args.engine else make_config(args)
    rows = []
    for load in args.loads or loads:
        mixture = loads[load]
        found = (
            confirm(args, server, mixture) if server else compare(args, config, mixture)
        )
        for row in found:
            rows.append({"load": load, **row})
            print(
                f"{load:16s} {row['kind']:8s} {row['rule']:17s} mean "
                f"{row['mean']:7.1f} s, p99 {row['p99']:7.1f} s, "
                f"{row['per_second']:.4f} requests/s",
                flush=True,
            )
    write_figures(args, runs=rows)


if __name__ == "__main__":
    main()
