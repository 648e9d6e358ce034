# SPDX-License-Identifier: Apache-2.0
"""What a denoising step costs beside the model's arithmetic.

    python benchmarks/step_overhead.py
    python benchmarks/step_overhead.py --model mid --image 384x384 --requests 1 8
    python benchmarks/step_overhead.py --xargs '{"denoising": "fast"}'

Takes the wall time per iteration, that is per step of all requests at once, and splits
it into what these take, each without the others that it calls:

    model        decoder and token embedding, pruning's work between layers included
    vision       tower and projector (of new images, in the first step)
    head         LM head
    sampling     the rest of the sampler: tokens, confidence, selection, canvas
    inputs       prepare_inputs_embeds, prepare_inputs, prepare_attn
    scheduling   schedule, update_from_output
    rest         messages to the worker, vLLM's runner, front end, output

The scheduler can be timed because the engine core runs in this process; the worker has
one of its own as always. With ``--deployed`` the engine core has one, too, and
scheduling is part of the rest. Times are those of the host: on a GPU, where kernels run
behind it, only the sums over a step mean something.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from common import MODEL_ARGUMENT, Target, noise_images, parse_size, write_figures
from engine import CORE_HERE, DEPLOYED, ask, ask_without_images, engine_options

from vllm_lladav.tools.engine import engine_core, start_engine

PROMPT_TOKENS = 130  # Of requests without an image.
WORKER_PARTS = ("model", "vision", "head", "sampling", "inputs")
ARITHMETIC = ("model", "vision", "head")


def install_timers(worker: Any) -> None:
    """In the worker: add up the seconds of each part, and count forward passes."""
    import time

    from vllm_lladav.worker.sampler import DenoisingSampler

    model, state = worker.get_model(), worker.model_runner.model_state
    model.seconds = {}
    inner = [0.0]  # Seconds of the timed calls within each one under way.

    def timed(function: Any, part: str) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                elapsed = time.perf_counter() - start
                seconds = model.seconds
                seconds[part] = seconds.get(part, 0.0) + elapsed - inner.pop()
                inner[-1] += elapsed

        return wrapper

    def forward(*args: Any, **kwargs: Any) -> Any:
        model.seconds["steps"] = model.seconds.get("steps", 0) + 1
        return inner_forward(*args, **kwargs)

    inner_forward = timed(model.forward, "model")
    model.forward = forward
    model.embed_input_ids = timed(model.embed_input_ids, "model")
    model.embed_multimodal = timed(model.embed_multimodal, "vision")
    model.compute_vocab_logits = timed(model.compute_vocab_logits, "head")
    DenoisingSampler.__call__ = timed(DenoisingSampler.__call__, "sampling")
    for name in ("prepare_inputs_embeds", "prepare_inputs", "prepare_attn"):
        setattr(state, name, timed(getattr(state, name), "inputs"))


def take_seconds(worker: Any) -> dict[str, float]:
    """In the worker: seconds of each part, and steps, since the last call."""
    model = worker.get_model()
    seconds, model.seconds = model.seconds, {}
    return seconds


class SchedulerTimer:
    """Seconds in the scheduler of an engine core in this process."""

    def __init__(self, llm: Any) -> None:
        self.seconds = 0.0
        scheduler = engine_core(llm).scheduler
        for name in ("schedule", "update_from_output"):
            setattr(scheduler, name, self._timed(getattr(scheduler, name)))

    def _timed(self, function: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self.seconds += time.perf_counter() - start
            return result

        return wrapper

    def take(self) -> float:
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def split(
    wall: float, worker: dict[str, float], scheduling: float | None
) -> dict[str, float]:
    """Milliseconds per step of every part; they add up to ``wall_ms``."""
    steps = worker["steps"]
    parts = {part: worker.get(part, 0.0) for part in WORKER_PARTS}
    if scheduling is not None:
        parts["scheduling"] = scheduling
    parts["rest"] = wall - sum(parts.values())
    return {"wall": 1e3 * wall / steps} | {
        part: 1e3 * seconds / steps for part, seconds in parts.items()
    }


class Bench:
    """An engine with timers, and the settings of all requests."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        options = engine_options(
            args.max_model_len,
            max(args.requests),
            dtype=args.dtype,
        )
        environment = DEPLOYED if args.deployed else CORE_HERE
        self.llm = start_engine(args.model, environment, **options)
        self.llm.collective_rpc(install_timers)
        self.scheduler = None if args.deployed else SchedulerTimer(self.llm)

    def measure(self, num_requests: int) -> dict[str, Any]:
        """Milliseconds per step, medians of the repeats."""
        runs = [self._run(num_requests) for _ in range(self.args.repeats + 1)]
        names = list(runs[0])
        # The first run is a warm-up.
        medians = {n: statistics.median(run[n] for run in runs[1:]) for n in names}
        steps, wall = medians.pop("steps"), medians.pop("wall")
        arithmetic = sum(medians[part] for part in ARITHMETIC)
        return {
            "requests": num_requests,
            "steps": steps,
            "wall_ms": wall,
            "arithmetic_ms": arithmetic,
            "engine_ms": wall - arithmetic,
            "parts_ms": medians,
            "percent": {part: 100 * ms / wall for part, ms in medians.items()},
        }

    def _run(self, num_requests: int) -> dict[str, float]:
        args = self.args
        images = noise_images(args.image, num_requests) if args.image else []
        self._take()
        if images:
            requests = [[image] for image in images]
            run = ask(self.llm, requests, args.gen_length, **args.xargs)
        else:
            run = ask_without_images(
                self.llm, num_requests, PROMPT_TOKENS, args.gen_length, **args.xargs
            )
        worker, scheduling = self._take()
        return {"steps": worker["steps"], **split(run.wall, worker, scheduling)}

    def _take(self) -> tuple[dict[str, float], float | None]:
        (worker,) = self.llm.collective_rpc(take_seconds)
        return worker, self.scheduler.take() if self.scheduler else None


def show(row: dict[str, Any]) -> None:
    print(
        f"{row['requests']:3d} requests, {row['steps']:g} steps: "
        f"{row['wall_ms']:8.2f} ms a step, {row['arithmetic_ms']:8.2f} ms arithmetic, "
        f"{row['engine_ms']:6.2f} ms engine"
    )
    for part, ms in row["parts_ms"].items():
        print(f"      {part:10s} {ms:8.2f} ms {row['percent'][part]:5.1f}%", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", **{**MODEL_ARGUMENT, "default": "lladav-random"})
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--gen-length", type=int, default=32)
    parser.add_argument(
        "--image", type=parse_size, metavar="WxH", help="default: text only"
    )
    parser.add_argument(
        "--xargs", type=json.loads, default={}, metavar="JSON", help="of all requests"
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--max-model-len", type=int, default=2048)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(
        "--deployed", action="store_true", help="engine core in a process of its own"
    )
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    bench = Bench(args)
    rows = []
    for number in args.requests:
        row = bench.measure(number)
        rows.append(row)
        show(row)
    name = f"all but arithmetic, {row['requests']} at once, % of a step"
    target = Target(name, 100 * row["engine_ms"] / row["wall_ms"], 3, at_most=True)
    print(target)
    write_figures(args, steps=rows, targets=[target.as_json()])


if __name__ == "__main__":
    main()
