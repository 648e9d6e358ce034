# SPDX-License-Identifier: Apache-2.0
"""What a denoising step costs beside the model's arithmetic.

    python benchmarks/step_overhead.py

Runs text-only requests on the tiny checkpoint through the engine as it is
deployed (engine core and worker in processes of their own) and takes the wall
time per step. The arithmetic of the same steps is timed in the worker: decoder,
token embedding and head. The difference is the engine: scheduling, messages
between processes, input preparation, confidence, selection, output.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
# Functions are sent to the worker to install the timers there.
os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")

ARITHMETIC = ("forward", "embed_input_ids", "compute_vocab_logits")


def install_timers(worker: Any) -> None:
    """In the worker: add up the seconds spent in the model."""
    import time

    model = worker.get_model()
    model.arithmetic_seconds = 0.0

    def timed(function: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            model.arithmetic_seconds += time.perf_counter() - start
            return result

        return wrapper

    for name in ("forward", "embed_input_ids", "compute_vocab_logits"):
        setattr(model, name, timed(getattr(model, name)))


def take_arithmetic_seconds(worker: Any) -> float:
    """In the worker: seconds since the last call."""
    model = worker.get_model()
    seconds, model.arithmetic_seconds = model.arithmetic_seconds, 0.0
    return seconds


def measure(llm: Any, num_requests: int, gen_length: int, repeats: int) -> dict:
    """Milliseconds per step: wall, arithmetic, and their difference; medians."""
    from vllm import SamplingParams

    params = SamplingParams(
        max_tokens=gen_length,
        temperature=0,
        ignore_eos=True,
        detokenize=False,
        extra_args={"gen_length": gen_length, "block_length": gen_length},
    )
    prompts = [
        {"prompt_token_ids": [1000 + 7 * i + j for j in range(130)]}
        for i in range(num_requests)
    ]
    wall, arithmetic = [], []
    for repeat in range(repeats + 1):
        llm.collective_rpc(take_arithmetic_seconds)
        start = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        elapsed = time.perf_counter() - start
        (seconds,) = llm.collective_rpc(take_arithmetic_seconds)
        if repeat:  # the first is a warm-up
            wall.append(1e3 * elapsed / gen_length)
            arithmetic.append(1e3 * seconds / gen_length)
    overhead = [w - a for w, a in zip(wall, arithmetic, strict=True)]
    return {
        "requests": num_requests,
        "gen_length": gen_length,
        "wall_ms": statistics.median(wall),
        "arithmetic_ms": statistics.median(arithmetic),
        "overhead_ms": statistics.median(overhead),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="lladav-tiny")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--gen-length", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()

    import torch
    import vllm

    llm = vllm.LLM(
        args.model,
        dtype="float32",
        max_model_len=1024,
        max_num_batched_tokens=4096,
        max_num_seqs=max(args.requests),
        kv_cache_memory_bytes=1 << 28,
    )
    llm.collective_rpc(install_timers)
    rows = [measure(llm, n, args.gen_length, args.repeats) for n in args.requests]
    for row in rows:
        print(
            f"{row['requests']:3d} requests: {row['wall_ms']:6.2f} ms a step, "
            f"{row['arithmetic_ms']:6.2f} ms arithmetic, "
            f"{row['overhead_ms']:6.2f} ms engine"
        )
    if args.output:
        machine = {
            "cpus": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "vllm": vllm.__version__,
        }
        figures = {"machine": machine, "steps": rows}
        args.output.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
