# SPDX-License-Identifier: Apache-2.0
"""How long running requests wait for the first steps of new ones.

    python benchmarks/stall.py

Requests with a dual cache denoise, each step a few rows; then as many new ones with an
image come at once, whose first steps compute everything. The engine is driven iteration
by iteration, without and with a limit on full steps (``--full-step-tokens``). Printed
are the longest iteration that a running request waits for, when the new requests had
their first steps, and the time until all were done.
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
os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")
# The scheduler is observed in this process.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

QUESTION = "Please describe the image in detail."
CONTEXT = 2048


class Bench:
    """One engine; the limit is set on its scheduler between runs."""

    def __init__(self, args: argparse.Namespace) -> None:
        from vllm import LLM

        self.args = args
        self.num_images = 0
        self.llm = LLM(
            str(args.model),
            dtype="float32",
            max_model_len=CONTEXT,
            max_num_seqs=args.running + args.new,
            max_num_batched_tokens=(args.running + args.new) * CONTEXT,
            limit_mm_per_prompt={"image": 1},
        )
        self.scheduler: Any = self.llm.llm_engine.engine_core.engine_core.scheduler  # type: ignore[attr-defined]

    def prompts(self, count: int) -> list[dict[str, Any]]:
        """Rendered, with images that the engine has not seen."""
        first, self.num_images = self.num_images, self.num_images + count
        tokenizer = self.llm.get_tokenizer()
        content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
        from vllm_lladav.model.lladav.prompt import CHAT_TEMPLATE_FILE

        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=CHAT_TEMPLATE_FILE.read_text(encoding="utf-8"),
            tokenize=False,
            add_generation_prompt=True,
        )
        return [
            {
                "prompt": text,
                "multi_modal_data": {"image": noise_image(self.args.image, number)},
            }
            for number in range(first, first + count)
        ]

    def add(self, names: list[str]) -> None:
        from vllm import SamplingParams

        params = SamplingParams(
            max_tokens=self.args.gen_length,
            temperature=0,
            ignore_eos=True,
            detokenize=False,
            extra_args={
                "gen_length": self.args.gen_length,
                "block_length": self.args.gen_length,
                "cache": "dual",
                "refresh_interval": self.args.gen_length,
            },
        )
        for name, prompt in zip(names, self.prompts(len(names)), strict=True):
            self.llm.llm_engine.add_request(name, prompt, params)

    def run(self, limit: int) -> dict[str, Any]:
        """Seconds. ``limit`` is that of ``--full-step-tokens``."""
        self.scheduler._full_step_tokens = limit
        old = [f"old{i}" for i in range(self.args.running)]
        new = [f"new{i}" for i in range(self.args.new)]
        self.add(old)
        for _ in range(4):
            self.llm.llm_engine.step()
        self.add(new)
        start = time.perf_counter()
        iterations: list[float] = []  # While an old request runs.
        first_steps: list[float] = []
        done: dict[str, float] = {}
        num_seen = self.args.running
        while self.llm.llm_engine.has_unfinished_requests():
            before = time.perf_counter()
            outputs = self.llm.llm_engine.step()
            now = time.perf_counter()
            if not set(old) <= done.keys():
                iterations.append(now - before)
            done |= {o.request_id: now - start for o in outputs if o.finished}
            num_ran = len(self.scheduler.running) + len(done)
            first_steps += [now - start] * (num_ran - num_seen)
            num_seen = max(num_seen, num_ran)
        return {
            "limit": limit,
            "longest_iteration": max(iterations),
            "median_iteration": statistics.median(iterations),
            "mean_first_step": statistics.mean(first_steps),
            "last_first_step": max(first_steps),
            "mean_old_done": statistics.mean(done[name] for name in old),
            "all_done": max(done.values()),
        }


def show(row: dict[str, Any]) -> None:
    limit = f"{row['limit']} tokens" if row["limit"] else "no limit"
    print(
        f"{limit:12s}: longest iteration {row['longest_iteration']:6.2f} s "
        f"(median {row['median_iteration']:.3f}), first steps of new requests after "
        f"{row['mean_first_step']:.2f} s on average, {row['last_first_step']:.2f} s at "
        f"most, running requests done after {row['mean_old_done']:.2f} s, all after "
        f"{row['all_done']:.2f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="default: the mid-size random one")
    parser.add_argument("--running", type=int, default=4)
    parser.add_argument("--new", type=int, default=4)
    parser.add_argument("--gen-length", type=int, default=32)
    parser.add_argument("--image", type=parse_size, default=(384, 384), metavar="WxH")
    parser.add_argument("--limits", type=int, nargs="+", default=[0, 2048, 4096])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    if args.model is None:
        from midsize import ensure_midsize

        args.model = ensure_midsize()
    bench = Bench(args)
    bench.run(args.limits[0])  # Kernels are prepared for these shapes.
    rows = [bench.run(limit) for _ in range(args.repeats) for limit in args.limits]
    for row in rows:
        show(row)
    if args.output:
        settings = {
            name: getattr(args, name)
            for name in ("running", "new", "gen_length", "image")
        }
        figures = {"machine": machine(), "settings": settings, "runs": rows}
        args.output.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
