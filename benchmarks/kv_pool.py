# SPDX-License-Identifier: Apache-2.0
"""How many more requests a KV pool holds when visual tokens are pruned.

    python benchmarks/kv_pool.py

Starts a server whose pool holds exactly N unpruned requests (a square image and its
canvas), sends many requests at once and samples ``vllm:num_requests_running``. The
most that run at a time is compared with the pool's blocks over those that a pruned
request holds, ``ceil((P' + C) / block size)``.

A request is admitted when the blocks of its *unpruned* first step are free, and gives
the difference back as soon as that step is dispatched. With ``u`` blocks unpruned and
``p`` pruned, ``floor((N - 1) u / p) + 1`` requests can therefore run at once: in a
small pool clearly fewer than ``N u / p``, in a large one nearly as many.
"""

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from common import QUESTION, noise_images, render_question, write_figures
from server import Sampler, Server, serve

from vllm_lladav.pruning.params import num_kept
from vllm_lladav.tiny import ensure_checkpoint
from vllm_lladav.tiny.presets import PRESETS
from vllm_lladav.tools.checkpoint import read_checkpoint

MODEL = "lladav-random"
IMAGE_SIZE = (384, 384)
KV_BLOCK = 128  # Tokens per block on CPUs.
TARGET = 0.9


def block_bytes() -> int:
    """Bytes of a KV block of ``MODEL``: layers, K and V, hidden size, float32."""
    size = PRESETS["tiny"]
    return size.num_layers * 2 * size.hidden_size * 4 * KV_BLOCK


def ask(server: Server, args: argparse.Namespace, **xargs: Any) -> dict[str, Any]:
    """One request with an image of its own. Returns its usage and report."""
    xargs |= {"gen_length": args.gen_length, "block_length": args.block_length}
    (image,) = noise_images(IMAGE_SIZE, 1)
    answer = server.ask(
        MODEL,
        image,
        QUESTION,
        max_tokens=args.gen_length,
        ignore_eos=True,
        vllm_xargs=xargs,
    )
    return {**answer["usage"], **answer["kv_transfer_params"]["lladav"]}


def num_blocks(num_tokens: int) -> int:
    return -(-num_tokens // KV_BLOCK)


def request_sizes(args: argparse.Namespace) -> tuple[int, int]:
    """Tokens of a request without and with pruning, canvas included."""
    from transformers import AutoTokenizer

    from vllm_lladav.model.lladav.prompt import encode_with_images

    tokenizer = AutoTokenizer.from_pretrained(ensure_checkpoint())
    image_token_id = -1  # Any that no text has.
    text = render_question(tokenizer)
    num_text = len(encode_with_images(tokenizer, text, image_token_id)) - 1
    (num_visual,), _ = read_checkpoint(MODEL).visual([IMAGE_SIZE])
    rest = num_text + args.gen_length
    return rest + num_visual, rest + num_kept(num_visual, 1, args.rate)


def flood(
    server: Server, count: int, args: argparse.Namespace, **fields: Any
) -> dict[str, Any]:
    """Send ``count`` requests at once and watch how many run."""
    start = time.monotonic()
    with (
        Sampler(server, args.interval, with_memory=False) as sampler,
        ThreadPoolExecutor(count) as pool,
    ):
        futures = [pool.submit(ask, server, args, **fields) for _ in range(count)]
        answers = [future.result() for future in futures]
        seconds = time.monotonic() - start
    crowded = [sample.running for sample in sampler.samples if sample.waiting]
    return {
        "requests": count,
        "seconds": seconds,
        "samples": len(sampler.samples),
        "most_running": max(sample.running for sample in sampler.samples),
        # While others wait: how full the pool is kept.
        "median_running": statistics.median(crowded) if crowded else None,
        "prompt_tokens": sorted({answer["prompt_tokens"] for answer in answers}),
        "blocks_returned": sorted({a["kv_blocks_returned"] for a in answers}),
    }


def measure(holds: int, args: argparse.Namespace) -> dict[str, Any]:
    """Fill a pool that holds ``holds`` unpruned requests."""
    whole, pruned = request_sizes(args)
    whole_blocks, pruned_blocks = num_blocks(whole), num_blocks(pruned)
    pool = holds * whole_blocks
    capacity = pool / pruned_blocks
    count = max(args.requests, round(1.5 * capacity))
    # Every token of an iteration has a place in the pool, so that with a budget of
    # that many tokens, and a seat for every request, blocks are the only limit.
    flags = {
        "--plugin": "pruning",
        "--prune-rate": args.rate,
        "--dtype": "float32",
        "--max-model-len": whole_blocks * KV_BLOCK,
        "--max-num-seqs": count,
        "--max-num-batched-tokens": pool * KV_BLOCK,
        # vLLM keeps one block for itself.
        "--kv-cache-memory-bytes": (pool + 1) * block_bytes(),
    }
    if args.layer:
        flags["--prune-layer"] = args.layer
    words = [str(word) for flag in flags.items() for word in flag]
    with (
        TemporaryDirectory() as scratch,
        serve(MODEL, words, Path(scratch, "log")) as server,
    ):
        unpruned = flood(server, 2 * holds, args, steps=args.num_blocks, prune_rate=0)
        filled = flood(server, count, args, steps=args.steps)
    assert filled["prompt_tokens"] == [whole - args.gen_length], filled
    assert filled["blocks_returned"] == [whole_blocks - pruned_blocks], filled
    return {
        "pool_blocks": pool,
        "blocks_unpruned": whole_blocks,
        "blocks_pruned": pruned_blocks,
        "capacity_unpruned": holds,
        "capacity_pruned": capacity,
        "admissible": (pool - whole_blocks) // pruned_blocks + 1,
        "ratio": filled["most_running"] / capacity,
        "unpruned": unpruned,
        "pruned": filled,
    }


def show(report: dict[str, Any]) -> None:
    unpruned, pruned = report["unpruned"], report["pruned"]
    print(
        f"\npool of {report['pool_blocks']} blocks of {KV_BLOCK} tokens; a request "
        f"takes {report['blocks_unpruned']}, pruned {report['blocks_pruned']}\n"
        f"  unpruned: room for {report['capacity_unpruned']}, "
        f"{unpruned['most_running']} ran at once\n"
        f"  pruned:   room for {report['capacity_pruned']:.1f}, "
        f"{pruned['most_running']} ran at once "
        f"({report['ratio']:.2f} of it; {report['admissible']} can be admitted)\n"
        f"  {pruned['requests']} requests in {pruned['seconds']:.0f} s, "
        f"{pruned['samples']} samples; while others waited, half of the time "
        f"{pruned['median_running']} or more ran"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog="With the defaults about 4 minutes on 2 quiet cores.",
    )
    parser.add_argument(
        "--holds",
        type=int,
        nargs="+",
        default=[4, 10],
        help="unpruned requests that the pool holds; a server each",
    )
    parser.add_argument(
        "--requests", type=int, default=40, help="at least, sent at once"
    )
    parser.add_argument("--rate", type=float, default=0.75)
    parser.add_argument("--layer", type=int, help="default: half the depth")
    parser.add_argument("--gen-length", type=int, default=64)
    parser.add_argument(
        "--block-length", type=int, default=16, help="short ones need few logits"
    )
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument(
        "--interval", type=float, default=0.05, help="seconds between samples"
    )
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    args.num_blocks = args.gen_length // args.block_length

    reports = []
    for holds in args.holds:
        reports.append(measure(holds, args))
        show(reports[-1])
    write_figures(args, pools=reports)
    best = max(report["ratio"] for report in reports)
    if best < TARGET:
        raise SystemExit(f"at most {best:.2f} of the pruned capacity was reached")


if __name__ == "__main__":
    main()
