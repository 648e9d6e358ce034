# SPDX-License-Identifier: Apache-2.0
"""Writes a random checkpoint: ``python -m vllm_lladav.tiny OUT [--preset mid] ...``."""

import argparse
from pathlib import Path

from vllm_lladav.tiny.checkpoint import DEFAULT_SEED, file_digests, write_checkpoint
from vllm_lladav.tiny.presets import PRESETS


def parse_gain(text: str) -> tuple[int, float]:
    """Parse ``ID:FACTOR``: a token id and the factor of its row of ``lm_head``."""
    token_id, _, factor = text.partition(":")
    return int(token_id), float(factor)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m vllm_lladav.tiny",
        description="Write a random-weight LLaDA-V checkpoint.",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="directory to write to")
    parser.add_argument("--preset", choices=list(PRESETS), default="tiny")
    parser.add_argument("--seed", default=DEFAULT_SEED)
    parser.add_argument("--dtype", choices=["bf16", "f32"], default="bf16")
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument(
        "--gain",
        type=parse_gain,
        action="append",
        default=[],
        metavar="ID:FACTOR",
        help="scale the row of lm_head of one token id; may be repeated",
    )
    arguments = parser.parse_args()
    write_checkpoint(
        arguments.out,
        arguments.preset,
        seed=arguments.seed,
        dtype=arguments.dtype,
        shards=arguments.shards,
        head_gains=dict(arguments.gain),
    )
    for name, digest in file_digests(arguments.out).items():
        print(digest, name)


if __name__ == "__main__":
    main()
