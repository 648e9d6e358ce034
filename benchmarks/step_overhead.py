# SPDX-License-Identifier: Apache-2.0
"""What a denoising step costs beside the model's arithmetic.

    python benchmarks/step_overhead.py

Runs text-only requests on the tiny checkpoint through the engine as it is
deployed (engine core and worker in processes of their own) and takes the wall
time per step. Timed in the worker, for the same steps, are the model's arithmetic
(decoder, token embedding, head) and the passes over its logits (most likely token
and its probability). The rest is scheduling, messages between processes, input
preparation, selection and output. "Engine" is all but the model's arithmetic.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from common import machine

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
# Functions are sent to the worker to install the timers there.
os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")


def install_timers(worker: Any) -> None:
    """In the worker: add up the seconds spent in the model and on its logits."""
    import time

    from vllm_lladav.denoising import sampler

    model = worker.get_model()
    model.seconds = [0.0, 0.0]

    def timed(function: Any, part: int) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            model.seconds[part] += time.perf_counter() - start
            return result

        return wrapper

    for name in ("forward", "embed_input_ids", "compute_vocab_logits"):
        setattr(model, name, timed(getattr(model, name), 0))
    for name in ("greedy_tokens", "chosen_probability"):
        setattr(sampler, name, timed(getattr(sampler, name), 1))


def take_seconds(worker: Any) -> list[float]:
    """In the worker: seconds in the model and on its logits since the last call."""
    model = worker.get_model()
    seconds, model.seconds[:] = list(model.seconds), [0.0, 0.0]
    return seconds


def measure(llm: Any, num_requests: int, gen_length: int, repeats: int) -> dict:
    """Milliseconds per step, medians of ``repeats`` runs."""
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
    runs = []
    for _ in range(repeats + 1):
        llm.collective_rpc(take_seconds)
        start = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        wall = time.perf_counter() - start
        ((arithmetic, logits),) = llm.collective_rpc(take_seconds)
        runs.append((wall, arithmetic, wall - arithmetic, logits))
    columns = zip(*runs[1:], strict=True)  # the first run is a warm-up
    names = ("wall_ms", "arithmetic_ms", "engine_ms", "logits_ms")
    return {
        "requests": num_requests,
        "gen_length": gen_length,
        **{
            name: 1e3 * statistics.median(column) / gen_length
            for name, column in zip(names, columns, strict=True)
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="lladav-random")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--gen-length", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()

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
            f"{row['engine_ms']:6.2f} ms engine "
            f"({row['logits_ms']:6.2f} ms of it on the logits)"
        )
    if args.output:
        figures = {"machine": machine(), "steps": rows}
        args.output.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
