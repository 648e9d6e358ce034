# SPDX-License-Identifier: Apache-2.0
"""``vllm-lladav capacity``. What is slow to import is imported late."""

import argparse
import json
import sys
from dataclasses import fields
from typing import Any

from vllm_lladav.model.lladav.image_modes import IMAGE_MODE_CHOICES
from vllm_lladav.options.flags import add_flags, given_flags
from vllm_lladav.options.options import REQUEST_OPTIONS, SERVER_OPTIONS
from vllm_lladav.options.rules import CONFIDENCE
from vllm_lladav.tools.capacity.engine import Engine
from vllm_lladav.tools.capacity.machine import GPUS, UNITS, Machine, parse_machine
from vllm_lladav.tools.capacity.model import Capacity, DoesNotFit
from vllm_lladav.tools.capacity.report import to_text, to_values
from vllm_lladav.tools.capacity.request import Images, make_plan
from vllm_lladav.tools.checkpoint import PRESETS, Checkpoint, read_checkpoint

_OPTIONS = {
    name: option
    for name, option in REQUEST_OPTIONS.items()
    # They change no length: how many steps run is for --steps to say.
    if name not in ("remasking", "generation_suffix", "stop_search", *CONFIDENCE)
}


def add_parser(subparsers: Any) -> None:
    """Add ``capacity`` to the subcommands."""
    parser = subparsers.add_parser(
        "capacity",
        help="what a machine would serve, computed",
        description="Compute from the shape of a model and a machine's figures how "
        "many requests of one kind run at once, how fast they are served, and what "
        "bounds that. Nothing is run or downloaded with a preset; docs/capacity.md has "
        "the formulas, and how far off they were.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="print JSON: bytes, s")
    _add_machine_arguments(parser)
    _add_request_arguments(parser)
    _add_engine_arguments(parser)


def _add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model and machine")
    model = group.add_mutually_exclusive_group()
    model.add_argument(
        "--preset",
        choices=PRESETS,
        default="8b",
        help="a built-in shape (default: %(default)s)",
    )
    model.add_argument(
        "--model",
        help="instead: an alias (lladav, lladav-tiny, ...), a hub name, or a "
        "directory with a config.json",
    )
    kind = group.add_mutually_exclusive_group()
    kind.add_argument(
        "--gpu", choices=GPUS, help="figures of its data sheet, dense bfloat16"
    )
    kind.add_argument(
        "--cpu", action="store_true", help="the machine is a CPU (default: a GPU)"
    )
    assumed = ", ".join(
        f"{field.name}={field.default / UNITS[field.name]:g}"
        for field in fields(Machine)
        if isinstance(field.default, float)
    )
    group.add_argument(
        "--machine",
        default="",
        metavar="NAME=VALUE,...",
        help="a rank's figures, instead of --gpu or of some of its: memory (GB), peak "
        "(TFLOP/s), bandwidth (GB/s), share and bandwidth_share of these that are "
        "reached, overhead of a step and request_overhead of each request in it (ms), "
        f"link to other ranks (GB/s, one direction). Assumed unless given: {assumed}",
    )


def _add_request_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("request")
    images = group.add_mutually_exclusive_group()
    images.add_argument(
        "--image",
        action="append",
        default=[],
        type=_size,
        metavar="WIDTHxHEIGHT",
        help="pixels; may be repeated",
    )
    images.add_argument(
        "--visual-tokens", type=int, metavar="N", help="instead of --image"
    )
    group.add_argument(
        "--image-mode",
        choices=IMAGE_MODE_CHOICES,
        default="auto",
        help="how images are tiled (default: as the checkpoint and their number say)",
    )
    group.add_argument(
        "--text-tokens",
        type=int,
        default=128,
        metavar="N",
        help="of the prompt, chat template included (default: %(default)s)",
    )
    add_flags(group, _OPTIONS.values())
    group.add_argument(
        "--concurrency",
        type=int,
        metavar="N",
        help="requests under way (default: as many as the server takes)",
    )


def _add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engine, as in vllm serve")
    group.add_argument(
        "--dtype-bytes",
        type=int,
        choices=(2, 4),
        default=2,
        help="of weights, activations and K/V (default: %(default)s)",
    )
    group.add_argument("--tensor-parallel-size", type=int, default=1, metavar="N")
    group.add_argument(
        "--block-size",
        type=int,
        default=Engine.block_size,
        metavar="N",
        help="KV slots of a block (default: %(default)s; vLLM takes 128 on a CPU)",
    )
    group.add_argument(
        "--max-num-batched-tokens",
        type=int,
        metavar="N",
        help="token budget of a step (default: the model's largest length, which is "
        "the least that vLLM takes without --max-model-len)",
    )
    group.add_argument("--max-num-seqs", type=int, default=Engine.max_seqs, metavar="N")
    add_flags(group, [SERVER_OPTIONS["full_step_tokens"]])
    group.add_argument(
        "--gpu-memory-utilization",
        type=float,
        default=Engine.memory_share,
        metavar="SHARE",
        help="(default: %(default)s)",
    )


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = map(int, text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"not WIDTHxHEIGHT: {text!r}") from None
    return width, height


def run(args: argparse.Namespace) -> int:
    """Exit code: 0; 1 if no request fits; 2 for what is wrong in the arguments."""
    try:
        machine = _machine(args)
        checkpoint = read_checkpoint(args.model) if args.model else PRESETS[args.preset]
        capacity = _capacity(args, machine, checkpoint)
        values = to_values(capacity)
    except (OSError, ValueError) as error:
        print(f"vllm-lladav capacity: error: {error}", file=sys.stderr)
        return 1 if isinstance(error, DoesNotFit) else 2
    if args.json:
        print(json.dumps({"model": checkpoint.name, **values}, indent=1))
    else:
        print(to_text(capacity, _title(args, checkpoint)))
    return 0


def _machine(args: argparse.Namespace) -> Machine:
    if not args.gpu and not args.machine:
        raise ValueError("name a machine with --gpu or --machine")
    if args.gpu and args.dtype_bytes != 2 and "peak=" not in args.machine:
        raise ValueError(
            f"the peak of --gpu {args.gpu} is that of bfloat16: give --machine peak=..."
            " for --dtype-bytes 4"
        )
    return parse_machine(args.machine, GPUS.get(args.gpu))


def _images(args: argparse.Namespace, checkpoint: Checkpoint) -> Images:
    if args.visual_tokens is None:
        return Images(*checkpoint.visual(args.image, args.image_mode))
    visual_tokens = max(args.visual_tokens, 0)
    # In as many tiles as that takes.
    return Images((visual_tokens,), -(-visual_tokens // checkpoint.tile_grid**2))


def _capacity(
    args: argparse.Namespace, machine: Machine, checkpoint: Checkpoint
) -> Capacity:
    images = _images(args, checkpoint)
    num_layers, options = checkpoint.shape.num_layers, given_flags(args, _OPTIONS)
    plan = make_plan(images, args.text_tokens, num_layers, **options)
    budget = args.max_num_batched_tokens
    engine = Engine(
        shape=checkpoint.shape,
        max_batched_tokens=checkpoint.max_model_len if budget is None else budget,
        max_seqs=args.max_num_seqs,
        dtype_bytes=args.dtype_bytes,
        tensor_parallel=args.tensor_parallel_size,
        block_size=args.block_size,
        **given_flags(args, ["full_step_tokens"]),
        memory_share=args.gpu_memory_utilization,
        on_cpu=args.cpu,
    )
    return Capacity(machine, engine, plan, images.num_tiles, args.concurrency)


def _title(args: argparse.Namespace, checkpoint: Checkpoint) -> str:
    machine, ranks = args.gpu or "the machine", args.tensor_parallel_size
    where = machine if ranks == 1 else f"{ranks} ranks of {machine}"
    return f"{checkpoint.name} on {where}, computed, not measured"
