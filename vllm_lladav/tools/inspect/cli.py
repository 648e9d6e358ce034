# SPDX-License-Identifier: Apache-2.0
"""``vllm-lladav inspect``. vLLM is imported late: help and typos come at once."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from vllm_lladav.model.lladav.image_modes import IMAGE_MODE_CHOICES
from vllm_lladav.options.flags import add_flags, given_flags
from vllm_lladav.options.options import REQUEST_OPTIONS
from vllm_lladav.options.reading import read_request, read_server
from vllm_lladav.tools.inspect.pictures import read_picture


def add_parser(subparsers: Any) -> None:
    """Add ``inspect`` to the subcommands."""
    parser = subparsers.add_parser(
        "inspect",
        help="draw which visual tokens pruning keeps",
        description="Ask about pictures with visual-token pruning, and draw them with "
        "the dropped patches dimmed, next to the scores of all patches.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--image",
        type=Path,
        action="append",
        required=True,
        metavar="FILE",
        help="may be repeated; several images are padded to one tile each, unless "
        "--image-mode says otherwise",
    )
    parser.add_argument("--prompt", required=True, help="the question")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("kept.png"),
        metavar="FILE",
        help="the drawing, in any format that Pillow writes (default: %(default)s)",
    )
    parser.add_argument(
        "--model",
        default="lladav-tiny",
        help="name, directory, or alias: lladav, lladav-tiny, lladav-random (default: "
        "%(default)s, a small checkpoint trained on drawn pictures)",
    )
    parser.add_argument(
        "--image-mode",
        choices=IMAGE_MODE_CHOICES,
        default="auto",
        help="how images are tiled (default: as the checkpoint and the number of "
        "images say)",
    )
    # What is not given of the request is as in a server without flags.
    group = parser.add_argument_group("request")
    add_flags(group, REQUEST_OPTIONS.values())
    group.add_argument("--seed", type=int, help="of what is random")


def run(args: argparse.Namespace) -> int:
    """Exit code: 0, or 2 with a message about what cannot be done as asked."""
    options = given_flags(args, REQUEST_OPTIONS)
    try:
        _check_output(args.output)
        # What needs no model is checked before one is loaded.
        read_request(read_server({"plugin": "pruning"}), options)
        pictures = [read_picture(image) for image in args.image]
    except (OSError, ValueError) as error:
        return _complain(error)

    # vLLM writes much to standard output that is of no use here.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm.exceptions import VLLMClientError

    from vllm_lladav.tools.inspect.drawing import draw
    from vllm_lladav.tools.inspect.run import inspect_pruning

    try:
        inspection = inspect_pruning(
            args.model,
            pictures,
            args.prompt,
            image_mode=args.image_mode,
            seed=args.seed,
            **options,
        )
        draw(inspection).save(args.output)
    except (OSError, ValueError, VLLMClientError) as error:
        return _complain(error)
    print(*inspection.describe_stages(), sep="\n")
    print(f"answer: {inspection.answer}")
    print(f"drawn: {args.output}")
    return 0


def _check_output(path: Path) -> None:
    """Find out before the model runs, not after it."""
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is no directory to write {path.name} to")
    if path.suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"{path} has no ending of an image format, such as .png")


def _complain(error: Exception) -> int:
    print(f"vllm-lladav inspect: error: {error}", file=sys.stderr)
    return 2
