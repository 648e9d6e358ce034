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
import os
import statistics
import time
from pathlib import Path
from typing import Any

from common import machine, noise_image, parse_size

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
# Functions are sent to the worker to install the timers there.
os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")

QUESTION = "Please describe the image in detail."
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
        scheduler = llm.llm_engine.engine_core.engine_core.scheduler
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
        import vllm

        self.args = args
        self.num_images = 0
        self.llm = vllm.LLM(
            str(args.model),
            dtype=args.dtype,
            max_model_len=args.max_model_len,
            max_num_batched_tokens=max(args.requests) * args.max_model_len,
            max_num_seqs=max(args.requests),
            # In a process of its own the worker gets its threads as in a server.
            distributed_executor_backend="mp",
            additional_config={"lladav": {"plugin": "pruning", "prune_rate": 0}},
        )
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
        from vllm import SamplingParams

        params = SamplingParams(
            max_tokens=self.args.gen_length,
            temperature=0,
            ignore_eos=True,
            detokenize=False,
            extra_args={"gen_length": self.args.gen_length, **self.args.xargs},
        )
        numbers = range(num_requests)
        self._take()
        if self.args.image:
            conversations = [self._conversation() for _ in numbers]
            start = time.perf_counter()
            self.llm.chat(conversations, params, use_tqdm=False)
        else:
            prompts = [
                {"prompt_token_ids": [100 + (7 * i + j) % 250 for j in range(130)]}
                for i in numbers
            ]
            start = time.perf_counter()
            self.llm.generate(prompts, params, use_tqdm=False)
        wall = time.perf_counter() - start
        worker, scheduling = self._take()
        return {"steps": worker["steps"], **split(wall, worker, scheduling)}

    def _take(self) -> tuple[dict[str, float], float | None]:
        (worker,) = self.llm.collective_rpc(take_seconds)
        return worker, self.scheduler.take() if self.scheduler else None

    def _conversation(self) -> list[dict[str, Any]]:
        self.num_images += 1
        picture = noise_image(self.args.image, self.num_images)
        content = [
            {"type": "image_pil", "image_pil": picture},
            {"type": "text", "text": QUESTION},
        ]
        return [{"role": "user", "content": content}]


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
    parser.add_argument(
        "--model",
        default="lladav-random",
        help="name, path, alias, or mid (midsize.py)",
    )
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
    settings = {k: v for k, v in vars(args).items() if k != "output"}
    if not args.deployed:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if args.model == "mid":
        from midsize import ensure_midsize

        args.model = ensure_midsize()

    bench = Bench(args)
    rows = []
    for number in args.requests:
        rows.append(bench.measure(number))
        show(rows[-1])
    if args.output:
        figures = {"machine": machine(), "settings": settings, "steps": rows}
        args.output.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
