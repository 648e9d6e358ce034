# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: arguments, pictures, and files of figures."""

import io
import json
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vllm_lladav.tiny import ensure_checkpoint
from vllm_lladav.tools.eval.environment import environment

QUESTION = "Please describe the image in detail."

_seeds = count(1)


def checkpoint(name: str) -> str:
    """Type of ``--model``: ``mid`` is the directory of the mid-size random checkpoint.

    Hidden size 512, 8 layers, 8 heads of 64, MLP of 1536, and the official vocabulary
    and tokenizer. All other names are as vLLM takes them.
    """
    return str(ensure_checkpoint("mid")) if name == "mid" else name


MODEL_ARGUMENT: Mapping[str, Any] = {
    "type": checkpoint,
    "default": "mid",
    "help": "directory, alias or hub name; mid is a random checkpoint that is wide "
    "enough to time (default: %(default)s)",
}
"""For ``parser.add_argument("--model", **MODEL_ARGUMENT)``."""


def parse_size(text: str) -> tuple[int, int]:
    """Type of ``--image``: ``WIDTHxHEIGHT`` in pixels."""
    width, _, height = text.partition("x")
    return int(width), int(height)


def noise_images(size: tuple[int, int], number: int) -> list[Image.Image]:
    """Pictures of (width, height) pixels; every call returns others, so that no cache
    of the engine has seen them."""
    shape = (size[1], size[0], 3)
    return [
        Image.fromarray(
            np.random.default_rng(next(_seeds)).integers(256, size=shape, dtype="uint8")
        )
        for _ in range(number)
    ]


def png(image: Image.Image) -> bytes:
    """The picture as a file's content."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def render_question(tokenizer: Any) -> str:
    """The prompt of one image and ``QUESTION``, by the plugin's chat template."""
    from vllm_lladav.model.lladav.prompt import default_chat_template

    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=default_chat_template(),
        tokenize=False,
        add_generation_prompt=True,
    )
    return text


class Target(NamedTuple):
    """A figure that others can be compared with, and what it should be at least or at
    most."""

    name: str
    ratio: float
    goal: float
    at_most: bool = False

    @property
    def is_reached(self) -> bool:
        return self.ratio <= self.goal if self.at_most else self.ratio >= self.goal

    def __str__(self) -> str:
        sign = "<=" if self.at_most else ">="
        verdict = "reached" if self.is_reached else "NOT reached"
        return f"{self.name}: {self.ratio:.2f} (target {sign} {self.goal:g}): {verdict}"

    def as_json(self) -> dict[str, Any]:
        return {**self._asdict(), "is_reached": self.is_reached}


def with_environment(args: Any, **figures: Any) -> dict[str, Any]:
    """Figures as they are written: behind the machine, versions and commit (with
    ``-dirty`` if the tree had uncommitted changes) and the command's arguments."""
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(args).items()
        if name not in ("output", "results")
    }
    return {"machine": environment(), "settings": settings, **figures}


def write_figures(args: Any, **figures: Any) -> None:
    """Write them to ``--output``, if it was given."""
    if args.output:
        text = json.dumps(with_environment(args, **figures), indent=2)
        args.output.write_text(text)
