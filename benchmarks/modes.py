# SPDX-License-Identifier: Apache-2.0
"""What caches, confidence decoding and pruning gain over exact denoising.

    python benchmarks/modes.py

Sends requests with one image each, which the engine has not seen, in every mode, with
and without pruning, alone and all at once, and prints wall time and model FLOPs as
ratios to exact mode in the same run. FLOPs are those of the formula in
``vllm_lladav/flops.py`` (``pruning_flops.py`` shows that it counts what runs); with
confidence decoding, whose number of steps is not known before, they are left out. The
checkpoint has random weights: its confidence is low, so the threshold modes show what
a step costs rather than how many a trained model needs.
"""

import argparse
import json
import os
import pickle
import statistics
import time
from pathlib import Path
from typing import Any

from common import machine, noise_image, parse_size

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
# A function is sent to the worker to ask for the model's shape.
os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")

QUESTION = "Please describe the image in detail."
LARGEST_REQUEST = 2048  # Tokens of a square image's prompt and the canvas, at most.

MODES: dict[str, dict[str, Any]] = {
    "exact": {"cache": "none"},
    "prompt": {"cache": "prompt", "refresh_interval": 25},
    "prefix": {"cache": "prefix", "refresh_interval": 25},
    "dual": {"cache": "dual", "refresh_interval": 25},
    "threshold": {"cache": "none", "confidence_threshold": 0.1},
    "dual+threshold": {
        "cache": "dual",
        "refresh_interval": 25,
        "confidence_threshold": 0.1,
    },
}


def describe_model(worker: Any) -> bytes:
    """Its shape, pickled: vLLM would make a dictionary of it."""
    from vllm_lladav.model.lladav.family import LLADAV

    model = worker.get_model()
    return pickle.dumps(LLADAV.shape(model.config, model.padded_vocab_size))


class Bench:
    """An engine and the settings of all requests."""

    def __init__(self, args: argparse.Namespace) -> None:
        from vllm import LLM

        self.args = args
        self.num_requests = 0
        concurrency = max(args.concurrency)
        self.llm = LLM(
            str(args.model),
            dtype="float32",
            max_model_len=LARGEST_REQUEST,
            max_num_seqs=concurrency,
            max_num_batched_tokens=concurrency * LARGEST_REQUEST,
            limit_mm_per_prompt={"image": 1},
            additional_config={"lladav": {"plugin": "pruning"}},
        )
        (description,) = self.llm.collective_rpc(describe_model)
        self.shape = pickle.loads(description)

    def run(self, mode: str, rate: float, concurrency: int, steps: int) -> dict:
        """So many requests at once. Seconds, steps per request and prompt length."""
        from vllm import SamplingParams

        args = self.args
        params = SamplingParams(
            max_tokens=args.gen_length,
            temperature=0,
            ignore_eos=True,
            detokenize=False,
            extra_args={
                "prune_rate": rate,
                "gen_length": args.gen_length,
                "block_length": args.block_length,
                "steps": steps,
                **MODES[mode],
            },
        )
        conversations = [
            [{"role": "user", "content": self._content()}] for _ in range(concurrency)
        ]
        start = time.perf_counter()
        outputs = self.llm.chat(conversations, params, use_tqdm=False)
        wall = time.perf_counter() - start
        reports = [output.kv_transfer_params["lladav"] for output in outputs]
        return {
            "wall": wall,
            "steps": statistics.mean(r["denoising_steps"] for r in reports),
            "prompt_len": len(outputs[0].prompt_token_ids or ()),
            "num_visual": reports[0]["visual_tokens"],
        }

    def _content(self) -> list[dict[str, Any]]:
        self.num_requests += 1
        picture = noise_image(self.args.image, self.num_requests)
        return [
            {"type": "image_pil", "image_pil": picture},
            {"type": "text", "text": QUESTION},
        ]

    def flops(self, mode: str, rate: float, run: dict) -> int | None:
        """Of the decoder and the head, for one request."""
        from vllm_lladav.denoising.params import DenoisingParams
        from vllm_lladav.denoising.plan import StepPlan
        from vllm_lladav.pruning.params import PruneStage, PruningParams
        from vllm_lladav.tools.flops import request_flops

        if "confidence_threshold" in MODES[mode]:
            return None
        args = self.args
        layer = -(-self.shape.num_layers // 2)
        params = DenoisingParams(
            gen_length=args.gen_length,
            block_length=args.block_length,
            steps=args.steps,
            temperature=0.0,
            remasking="low_confidence",
            seed=None,
            max_answer_tokens=args.gen_length,
            pruning=PruningParams((PruneStage(1, layer, rate),)) if rate else None,
            **MODES[mode],
        )
        plan = StepPlan(params, run["prompt_len"], (run["num_visual"],))
        return request_flops(self.shape, plan).total


def measure(bench: Bench, concurrency: int) -> list[dict[str, Any]]:
    """Every mode with and without pruning."""
    rows: list[dict[str, Any]] = []
    for mode in bench.args.modes:
        for rate in (0.0, bench.args.rate):
            # Kernels are prepared for these shapes.
            bench.run(mode, rate, concurrency, bench.args.gen_length // 8)
            run = bench.run(mode, rate, concurrency, bench.args.steps)
            flops = bench.flops(mode, rate, run)
            row = {"mode": mode, "rate": rate, "concurrency": concurrency}
            rows.append({**row, **run, "flops": flops})
            show(rows[-1], rows[0])
    return rows


def show(row: dict[str, Any], exact: dict[str, Any]) -> None:
    wall_ratio = exact["wall"] / row["wall"]
    text = (
        f"{row['concurrency']:2d} at once, {row['mode']:14s} pruned "
        f"{row['rate']:.0%}: {row['wall']:7.2f} s, {wall_ratio:5.1f}x exact, "
        f"{row['steps']:4.1f} steps"
    )
    if row["flops"] is not None:
        flop_gain = 1 - row["flops"] / exact["flops"]
        text += f", {exact['flops'] / row['flops']:5.1f}x fewer FLOPs"
        if flop_gain:
            gain = (1 - row["wall"] / exact["wall"]) / flop_gain
            text += f", wall gain {gain:.2f} of the FLOP gain"
    print(text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog="About 17 minutes on 2 quiet cores without the mode threshold, which "
        "takes nearly as long as exact.",
    )
    parser.add_argument(
        "--model", type=Path, help="checkpoint; default: the mid-size random one"
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument(
        "--image", type=parse_size, default=(384, 384), metavar="WxH", help="pixels"
    )
    parser.add_argument("--gen-length", type=int, default=64)
    parser.add_argument("--block-length", type=int, default=16)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0.75, help="prune rate")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    if args.modes[0] != "exact":
        args.modes = ["exact", *(mode for mode in args.modes if mode != "exact")]
    if args.model is None:
        from midsize import ensure_midsize

        args.model = ensure_midsize()

    bench = Bench(args)
    rows = [row for n in args.concurrency for row in measure(bench, n)]
    if args.output:
        settings = {
            name: getattr(args, name)
            for name in ("image", "gen_length", "block_length", "steps", "rate")
        }
        figures = {"machine": machine(), "settings": settings, "runs": rows}
        args.output.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
