# SPDX-License-Identifier: Apache-2.0
"""What a denoising step costs where the model's arithmetic costs nothing.

    python benchmarks/host_time.py

A model of almost no width (one layer and one head of ``lladav-tiny``) leaves what a
device would not do. Milliseconds per iteration, that is per step of all requests at
once, are split into

    worker    the worker, outside of the model: between the end of one step's arithmetic
              and the launch of the next
    beside    scheduler, output, front end: on a GPU they run while a step does
    model     forward pass, head and what is made of its logits: what is left of the
              arithmetic

All of it runs in one process and on one thread. A CPU has no queue, so it waits for all
of ``worker``. A GPU has the next step queued before it is done with this one, and waits
for ``worker`` only where that takes longer than the step; with ``prefix`` and ``dual``
caches, whose rows follow from the block, it waits for the report of the last step and
for both parts.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import write_figures
from engine import ask_without_images, engine_options
from safetensors.torch import load_file, save_file

from vllm_lladav.tiny import TRAINED
from vllm_lladav.tools.engine import engine_core, start_engine

PROMPT_TOKENS = 60
WIDTH = 32  # Of the only head.
METHODS: dict[str, dict[str, Any]] = {
    "exact": {"denoising": "exact"},
    "dual": {"cache": "dual"},
}


def write_thin_model(directory: Path) -> None:
    """``lladav-tiny`` with one layer, one head, and an MLP as wide as that."""
    config = json.loads((TRAINED / "config.json").read_text())
    config |= {
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
    }
    for path in TRAINED.iterdir():
        if path.is_dir() or path.suffix != ".json":
            continue
        (directory / path.name).write_text(path.read_text())
    tower = TRAINED / config["mm_vision_tower"]
    (directory / tower.name).symlink_to(tower)
    (directory / "config.json").write_text(json.dumps(config))
    tensors = {}
    for name, tensor in load_file(TRAINED / "model.safetensors").items():
        if "vision_tower" in name:
            tensors[name] = tensor
        elif ".layers." in name and ".layers.0." not in name:
            continue
        elif name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensor[:, :WIDTH].contiguous()
        elif name.startswith("model.mm_projector.0."):
            tensors[name] = tensor[:WIDTH].contiguous()
        else:
            tensors[name] = tensor[(slice(WIDTH),) * tensor.dim()].contiguous()
    save_file(tensors, directory / "model.safetensors")


class Clock:
    """Seconds in some functions, without those of others that these call."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]  # Of the timed calls within each one under way.

    def watch(self, owner: Any, name: str, part: str) -> None:
        setattr(owner, name, self._timed(getattr(owner, name), part))

    def _timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                elapsed = time.perf_counter() - start
                own = elapsed - self._inner.pop()
                self.seconds[part] = self.seconds.get(part, 0.0) + own
                self._inner[-1] += elapsed

        return timed


class Bench:
    """An engine in this process, with a clock."""

    def __init__(self, model: str, args: argparse.Namespace) -> None:
        self.args = args
        most = max(args.requests)
        longest = PROMPT_TOKENS + args.gen_length + 1
        self.llm = start_engine(model, **engine_options(longest, most))
        self.clock = Clock()
        core = engine_core(self.llm)
        worker = core.model_executor.driver_worker.worker
        for name in ("execute_model", "sample_tokens"):
            self.clock.watch(worker, name, "worker")
        self.clock.watch(worker.get_model(), "forward", "model")
        predictor = worker.model_runner.sampler._predictor
        self.clock.watch(predictor, "predict", "model")
        self.num_steps = 0
        schedule = core.scheduler.schedule

        def counted(*args: Any, **kwargs: Any) -> Any:
            output = schedule(*args, **kwargs)
            self.num_steps += bool(output.num_scheduled_tokens)
            return output

        core.scheduler.schedule = counted

    def measure(self, method: str, num_requests: int) -> dict[str, Any]:
        """Medians of the repeats; the first run is a warm-up."""
        runs = [self._run(method, num_requests) for _ in range(self.args.repeats + 1)]
        return {
            "method": method,
            "requests": num_requests,
            **{
                part: statistics.median(run[part] for run in runs[1:])
                for part in runs[0]
            },
        }

    def _run(self, method: str, num_requests: int) -> dict[str, float]:
        self.clock.seconds, self.num_steps = {}, 0
        args = self.args
        xargs = {**METHODS[method], "block_length": args.block_length}
        run = ask_without_images(
            self.llm, num_requests, PROMPT_TOKENS, args.gen_length, **xargs
        )
        per_step = 1e3 / self.num_steps
        in_worker, model = (self.clock.seconds[part] for part in ("worker", "model"))
        return {
            "steps": self.num_steps,
            "worker_ms": per_step * in_worker,
            "beside_ms": per_step * (run.wall - in_worker - model),
            "model_ms": per_step * model,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--gen-length", type=int, default=64)
    parser.add_argument("--block-length", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    rows = []
    with TemporaryDirectory() as directory:
        write_thin_model(Path(directory))
        import torch

        torch.set_num_threads(1)
        bench = Bench(directory, args)
        for method in args.methods:
            for number in args.requests:
                rows.append(bench.measure(method, number))
                print(
                    f"{method:6s} {number:3d} requests: worker "
                    f"{rows[-1]['worker_ms']:6.2f} ms a step, beside "
                    f"{rows[-1]['beside_ms']:6.2f} ms, model "
                    f"{rows[-1]['model_ms']:6.2f} ms",
                    flush=True,
                )
    write_figures(args, steps=rows)


if __name__ == "__main__":
    main()
