# SPDX-License-Identifier: Apache-2.0
"""Requests and committed tokens per second of a server under load.

    python benchmarks/serve_load.py --results results/load

Starts one server, and for every preset and number of requests at once runs vLLM's own
client, ``vllm bench serve``, against it. Presets are parameters of the requests, so the
server is the same for all. What the client does not see is read from ``/metrics``,
before, while and after it runs.

The client sends noise (``random-mm``) and asks for answers of a fixed length. With
``--pictures drawn`` it sends pictures and questions of ``examples/tiny`` instead, and
answers end by themselves: a trained model is sure of such answers, which is what
confidence decoding (``fast``) lives on.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import MODEL_ARGUMENT, noise_images, parse_size, with_environment
from PIL import Image
from server import CHAT, VLLM, Sampler, Server, serve, summarise

from vllm_lladav.model.families import resolve_alias

PRESETS = ("exact", "pruned", "fast", "fast+pruned")
PERCENTILES = (50, 95, 99)
QUICK = {"concurrency": [1, 32], "per_slot": 4, "output_len": 32}


def preset_xargs(preset: str, prune_rate: float) -> dict[str, Any]:
    """``vllm_xargs`` of a preset's requests."""
    return {
        "denoising": "fast" if "fast" in preset else "exact",
        "prune_rate": prune_rate if "pruned" in preset else 0,
    }


def bucket_config(sizes: Sequence[tuple[int, int]]) -> str:
    """Images of these (width, height) in equal shares, as ``random-mm`` wants it."""
    buckets = {(height, width, 1): 1 / len(sizes) for width, height in sizes}
    return repr(buckets)


def bench_command(
    args: argparse.Namespace, url: str, run: Mapping[str, Any], result: Path
) -> list[str]:
    """``vllm bench serve`` for one preset and concurrency, but for the data."""
    body = {"vllm_xargs": preset_xargs(run["preset"], args.prune_rate)}
    return [
        *(VLLM, "bench", "serve", "--backend", "openai-chat", "--endpoint", CHAT),
        *("--base-url", url, "--model", args.model, "--tokenizer", args.tokenizer),
        *("--num-prompts", str(run["requests"])),
        *("--max-concurrency", str(run["concurrency"])),
        *("--seed", str(run["seed"])),
        *("--temperature", "0", "--extra-body", json.dumps(body)),
        *("--percentile-metrics", "ttft,e2el"),
        *("--metric-percentiles", ",".join(map(str, PERCENTILES))),
        *("--save-result", "--result-dir", str(result.parent)),
        *("--result-filename", result.name, "--disable-tqdm"),
    ]


def share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def figures(
    before: Counter, after: Counter, result: Mapping[str, Any], num_kv_blocks: int
) -> dict[str, Any]:
    """What one run gave, from ``/metrics`` around it and the client's result.

    Times in ms. ``step_ms`` is from scheduling an iteration to having its output,
    ``ranking_ms`` the part of it in which visual tokens are ranked for pruning, and
    ``between_steps_ms`` the rest of the run, shared out over its iterations.
    """
    grown = Counter(after)
    grown.subtract(before)
    seconds = result["duration"]
    steps = grown["lladav:denoising_steps_total"]
    committed = grown["lladav:committed_tokens_total"]
    iterations = grown["lladav:denoising_step_seconds_count"]
    in_steps = grown["lladav:denoising_step_seconds_sum"]
    visual = grown["lladav:visual_tokens_total"]
    pruned = grown["lladav:visual_tokens_pruned_total"]
    queued = grown["vllm:request_queue_time_seconds_sum"]
    return {
        "completed": result["completed"],
        "failed": result["failed"],
        "seconds": seconds,
        "requests_per_s": result["completed"] / seconds,
        "committed_tokens_per_s": committed / seconds,
        "steps_per_s": steps / seconds,
        "tokens_per_step": share(committed, steps),
        "steps_per_request": share(steps, result["completed"]),
        **{f"latency_p{p}_ms": result[f"p{p}_e2el_ms"] for p in PERCENTILES},
        **{f"first_block_p{p}_ms": result[f"p{p}_ttft_ms"] for p in PERCENTILES},
        "queue_ms": share(1e3 * queued, grown["vllm:request_queue_time_seconds_count"]),
        "iterations": iterations,
        "requests_per_iteration": share(steps, iterations),
        "step_ms": share(1e3 * in_steps, iterations),
        "ranking_ms": share(1e3 * grown["lladav:prune_seconds_sum"], iterations),
        "between_steps_ms": share(1e3 * max(0.0, seconds - in_steps), iterations),
        "visual_tokens_kept": share(visual - pruned, visual),
        "images_encoded": share(
            grown["lladav:images_encoded_total"], grown["lladav:images_total"]
        ),
        "kv_blocks": num_kv_blocks,
        "kv_use_after": after["vllm:kv_cache_usage_perc"],
    }


def drawn_questions(directory: Path, count: int, seed: int) -> list[dict[str, str]]:
    """Pictures (``image``, a path) and ``question`` of ``examples/tiny``."""
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from examples.tiny.questions import write

    write(directory, count, "heldout", seed)
    lines = (directory / "questions.jsonl").read_text().splitlines()
    questions = [json.loads(line) for line in lines]
    return [{**q, "image": str(directory / q["image"])} for q in questions]


def dataset_flags(
    args: argparse.Namespace, run: Mapping[str, Any], scratch: Path
) -> list[str]:
    """What the client sends in a run."""
    if args.pictures == "noise":
        return [
            *("--dataset-name", "random-mm", "--ignore-eos"),
            *("--random-input-len", str(args.input_len)),
            *("--random-output-len", str(args.output_len)),
            *("--random-mm-bucket-config", bucket_config(args.image)),
        ]
    drawn = scratch / str(run["seed"])
    lines = [
        json.dumps({"prompt": q["question"], "image_files": [q["image"]]})
        for q in drawn_questions(drawn, run["requests"], run["seed"])
    ]
    data = drawn / "custom_image.jsonl"
    data.write_text("\n".join(lines))
    return [
        *("--dataset-name", "custom_image", "--dataset-path", str(data)),
        *("--custom-output-len", str(args.output_len)),
    ]


def warm_up(server: Server, args: argparse.Namespace, run: Mapping[str, Any]) -> None:
    """As many requests at once as in the run, of a few steps each."""
    xargs = preset_xargs(run["preset"], args.prune_rate)
    xargs |= {"gen_length": 4, "block_length": 4, "steps": 4}

    def ask(image: Image.Image) -> None:
        server.ask(args.model, image, "Describe the picture.", vllm_xargs=xargs)

    with ThreadPoolExecutor(run["concurrency"]) as pool:
        list(pool.map(ask, noise_images(args.image[0], run["concurrency"])))


def measure(
    server: Server, args: argparse.Namespace, run: dict[str, Any], scratch: Path
) -> dict[str, Any]:
    """One run of the client."""
    name = f"{args.pictures}-{run['preset']}-{run['concurrency']}"
    warm_up(server, args, run)
    before = server.wait_until_idle()
    result, log = args.results / f"vllm-{name}.json", args.results / "client.log"
    result.unlink(missing_ok=True)
    command = bench_command(args, server.url, run, result)
    command += dataset_flags(args, run, scratch)
    with log.open("w") as output, Sampler(server, args.interval) as sampler:
        subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False)
    after = server.wait_until_idle()
    if not result.exists():
        raise RuntimeError(f"vllm bench serve failed:\n{log.read_text()[-4000:]}")
    found = figures(
        before, after, json.loads(result.read_text()), server.num_kv_blocks()
    )
    # The client draws its images first; what counts is the time under load.
    samples = [s for s in sampler.samples if s.running or s.waiting]
    return {
        **run,
        **found,
        **summarise(samples or sampler.samples),
        "command": shlex.join(command),
    }


def show(row: Mapping[str, Any]) -> None:
    print(
        f"{row['preset']:12s} {row['concurrency']:3d} at once: "
        f"{row['requests_per_s']:6.2f} requests/s, "
        f"{row['committed_tokens_per_s']:7.1f} tokens/s, latency p50 "
        f"{row['latency_p50_ms'] / 1e3:6.2f} s, p99 {row['latency_p99_ms'] / 1e3:6.2f} "
        f"s, first block p50 {row['first_block_p50_ms'] / 1e3:6.2f} s, "
        f"{row['steps_per_request'] or 0:5.1f} steps a request",
        flush=True,
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", **{**MODEL_ARGUMENT, "default": "lladav-tiny"})
    parser.add_argument("--tokenizer", help="default: the model's")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--prune-rate", type=float, default=0.75)
    parser.add_argument(
        "--concurrency", type=int, nargs="+", default=[1, 4, 8, 16, 32, 64]
    )
    parser.add_argument("--per-slot", type=int, default=4, help="requests per slot")
    parser.add_argument("--least", type=int, default=8, help="requests, at least")
    parser.add_argument("--pictures", choices=("noise", "drawn"), default="noise")
    parser.add_argument(
        "--image", type=parse_size, nargs="+", default=[(192, 192)], metavar="WxH"
    )
    parser.add_argument("--input-len", type=int, default=32, help="tokens of text")
    parser.add_argument("--output-len", type=int, default=64, help="and canvas length")
    parser.add_argument(
        "--max-num-batched-tokens", type=int, default=16384, help="of an iteration"
    )
    parser.add_argument("--dtype", default="auto")
    parser.add_argument(
        "--server-args", type=shlex.split, default=[], help="as --server-args='--x 1'"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the first run's data")
    parser.add_argument(
        "--interval", type=float, default=0.25, help="s between samples"
    )
    parser.add_argument("--quick", action="store_true", help=f"defaults {QUICK}")
    parser.add_argument("--results", type=Path, default=Path("results/load"))
    if parser.parse_known_args()[0].quick:
        parser.set_defaults(**QUICK)
    args = parser.parse_args()
    if args.tokenizer is None:
        args.tokenizer = resolve_alias(args.model)
    return args


def main() -> None:
    args = parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    flags = [
        *("--plugin", "pruning", "--dtype", args.dtype),
        *("--max-num-seqs", str(max(args.concurrency))),
        *("--max-num-batched-tokens", str(args.max_num_batched_tokens)),
        *args.server_args,
    ]
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    report = with_environment(args, server_flags=flags, started=started, runs=[])
    log = args.results / "server.log"
    with TemporaryDirectory() as scratch, ExitStack() as stack:
        if args.pictures == "drawn":  # The client sends paths of what it is given.
            flags += ["--allowed-local-media-path", scratch]
        server = stack.enter_context(serve(args.model, flags, log))
        for preset, concurrency in product(args.presets, args.concurrency):
            count = max(args.least, args.per_slot * concurrency)
            run = {"preset": preset, "concurrency": concurrency, "requests": count}
            # Another one for every run: no image is in a cache when it comes.
            run["seed"] = args.seed + len(report["runs"])
            report["runs"].append(measure(server, args, run, Path(scratch)))
            show(report["runs"][-1])
            # After every run: an interrupted benchmark leaves what it has.
            text = json.dumps(report, indent=2)
            (args.results / f"serve_load-{args.pictures}.json").write_text(text)
    failed = sum(run["failed"] for run in report["runs"])
    if failed:
        raise SystemExit(f"{failed} requests failed")


if __name__ == "__main__":
    main()
