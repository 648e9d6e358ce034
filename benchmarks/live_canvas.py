# SPDX-License-Identifier: Apache-2.0
"""What the live canvas costs, watched, unwatched, and off.

    python benchmarks/live_canvas.py
    python benchmarks/live_canvas.py --requests 1 8 --rounds 20 --model mid

Bytes of a step of each request, in an engine of this process: from the device to the
host, from the engine to the API server (as vLLM encodes its outputs), and, of a server,
to the client. Milliseconds of a step: of streamed chat completions to a server without
``--live-canvas``, to one with it that nobody watches, and to the same one, watched; in
turns, so that a machine that changes its pace changes all three.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests
from common import MODEL_ARGUMENT, noise_images, parse_size, png, write_figures
from engine import engine_options
from server import CHAT, REQUEST_SECONDS, chat_body, serve

from vllm_lladav.live.asking import ChannelNumber
from vllm_lladav.live.channels import Channel
from vllm_lladav.tools.engine import running_engine

WAYS = ("off", "unwatched", "watched")


def bytes_inside(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Per step of a request that runs alone, by way."""
    from vllm import SamplingParams
    from vllm.v1.engine.output_processor import OutputProcessor
    from vllm.v1.serial_utils import MsgpackEncoder

    from vllm_lladav.plugin import register
    from vllm_lladav.worker.sampler import DenoisingSampler

    register()  # Ours is to see outputs before the plugin takes frames out of them.
    sent = {"device to host": 0, "engine to API server": 0}
    end_step, process = DenoisingSampler.__call__, OutputProcessor.process_outputs
    num_steps, encoder = 0, MsgpackEncoder()

    def count_rows(sampler: Any, *step: Any) -> Any:
        nonlocal num_steps
        output = end_step(sampler, *step)
        num_steps += 1
        tokens = (output.sampled_token_ids, output.num_sampled, output.num_nans)
        sent["device to host"] += sum(t.nbytes for t in tokens if t is not None)
        return output

    def count_outputs(processor: Any, outputs: Any, *args: Any, **kwargs: Any) -> Any:
        encoded = [encoder.encode(output) for output in outputs]
        sent["engine to API server"] += sum(len(p) for one in encoded for p in one)
        return process(processor, outputs, *args, **kwargs)

    found = {}
    picture = {"type": "image_pil", "image_pil": noise_images(args.image, 1)[0]}
    content = [picture, {"type": "text", "text": "What is it?"}]
    messages: Any = [{"role": "user", "content": content}]
    lladav = {"plugin": "pruning", "prune_rate": 0.5}
    DenoisingSampler.__call__ = count_rows  # type: ignore[method-assign]
    OutputProcessor.process_outputs = count_outputs  # type: ignore[method-assign]
    for way in WAYS:
        options = lladav | ({} if way == "off" else {"live_canvas": "on"})
        config = engine_options(
            args.longest, 1, additional_config={"lladav": options}, enforce_eager=True
        )
        with running_engine(args.model, **config) as llm:
            channel = Channel()
            xargs = {"live_canvas": ChannelNumber(channel.number)}
            params = SamplingParams(
                max_tokens=args.gen_length,
                temperature=0,
                ignore_eos=True,
                extra_args=xargs if way == "watched" else {},
            )
            num_steps, sent = 0, dict.fromkeys(sent, 0)
            llm.chat(messages, params, use_tqdm=False)
            found[way] = {name: total / num_steps for name, total in sent.items()}
            channel.close()
    DenoisingSampler.__call__ = end_step  # type: ignore[method-assign]
    OutputProcessor.process_outputs = process  # type: ignore[method-assign]
    return found


def read_stream(url: str, body: dict[str, Any]) -> tuple[float, int]:
    """Seconds and bytes of a response."""
    began = time.perf_counter()
    response = requests.post(url + CHAT, json=body, timeout=REQUEST_SECONDS)
    response.raise_for_status()
    return time.perf_counter() - began, len(response.content)


def served(
    args: argparse.Namespace, urls: dict[str, str], number: int
) -> dict[str, dict[str, float]]:
    """Milliseconds of a step with so many requests at once, and bytes that each step
    sends to a client, by way."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    sizes: dict[str, list[int]] = {way: [] for way in WAYS}
    with ThreadPoolExecutor(number) as pool:
        for number_of_round in range(args.rounds + 1):
            for way in WAYS:
                url = urls["off" if way == "off" else "on"]
                xargs = {"live_canvas": 1} if way == "watched" else {}
                bodies = [
                    chat_body(
                        args.model,
                        png(picture),
                        "What is it?",
                        max_tokens=args.gen_length,
                        stream=True,
                        ignore_eos=True,
                        vllm_xargs=xargs,
                    )
                    for picture in noise_images(args.image, number)
                ]
                began = time.perf_counter()
                answers = list(pool.map(lambda b, u=url: read_stream(u, b), bodies))
                if number_of_round:  # The first one warms up.
                    seconds[way].append(time.perf_counter() - began)
                    sizes[way] += [size for _, size in answers]
    steps = args.gen_length
    return {
        way: {
            "ms": 1000 * statistics.median(seconds[way]) / steps,
            "least ms": 1000 * min(seconds[way]) / steps,
            "bytes to client": statistics.mean(sizes[way]) / steps,
        }
        for way in WAYS
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", **{**MODEL_ARGUMENT, "default": "lladav-tiny"})
    parser.add_argument("--image", type=parse_size, default=(96, 96), metavar="WxH")
    parser.add_argument("--gen-length", type=int, default=128)
    parser.add_argument("--longest", type=int, default=2048, help="tokens of a request")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--output", type=Path, metavar="FILE")
    args = parser.parse_args(argv)

    inside = bytes_inside(args)
    print(f"bytes inside: {json.dumps(inside)}", flush=True)
    flags = ["--plugin", "pruning", "--dtype", "float32", "--max-num-seqs", "8"]
    flags += ["--max-model-len", str(args.longest), "--gen-length"]
    flags += [str(args.gen_length)]
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(args.model, flags, Path(folder, "off")) as off,
        serve(args.model, [*flags, "--live-canvas", "on"], Path(folder, "on")) as on,
    ):
        urls = {"off": off.url, "on": on.url}
        outside = {}
        for number in args.requests:
            outside[number] = served(args, urls, number)
            print(f"{number} at once: {json.dumps(outside[number])}", flush=True)
    write_figures(args, inside=inside, server=outside)


if __name__ == "__main__":
    main()
