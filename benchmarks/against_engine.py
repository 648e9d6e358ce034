# SPDX-License-Identifier: Apache-2.0
"""The engine as ``against_plain.py`` uses it, and pictures that it has not seen."""

import os
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from common import noise_image
from modes import QUESTION
from PIL import Image

# As `make serve` does. vLLM reads it when an engine starts.
os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")

GEN_LENGTH = 64
CONCURRENCY = 8
_TEXT_TOKENS = 256  # Of a prompt without its visual tokens, at most.

_seeds = count(1)


class EngineRun(NamedTuple):
    """Requests that were sent at once.

    Attributes:
        steps: per request, on average.
        prompts: ids, one placeholder per visual token.
        answers: all of the canvas.
    """

    wall: float
    steps: float
    prompts: list[list[int]]
    answers: list[list[int]]


class Engine:
    """As it is deployed, for requests with one picture each."""

    def __init__(self, model: Path, longest: int) -> None:
        from vllm import LLM

        self.llm = LLM(
            str(model),
            dtype="float32",
            max_model_len=longest,
            max_num_seqs=CONCURRENCY,
            max_num_batched_tokens=CONCURRENCY * longest,
            limit_mm_per_prompt={"image": 1},
            additional_config={"lladav": {"plugin": "pruning"}},
        )

    def ask(self, images: Sequence[Image.Image], options: dict[str, Any]) -> EngineRun:
        """``options``: of the requests, beside the length; nothing is pruned unless
        they say so."""
        from vllm import SamplingParams

        params = SamplingParams(
            max_tokens=GEN_LENGTH,
            temperature=0,
            ignore_eos=True,
            detokenize=False,
            extra_args={"gen_length": GEN_LENGTH, "prune_rate": 0.0, **options},
        )
        conversations = [_conversation(image) for image in images]
        start = time.perf_counter()
        outputs = self.llm.chat(conversations, params, use_tqdm=False)
        wall = time.perf_counter() - start
        reports = [output.kv_transfer_params["lladav"] for output in outputs]
        return EngineRun(
            wall=wall,
            steps=statistics.mean(report["denoising_steps"] for report in reports),
            prompts=[list(output.prompt_token_ids or ()) for output in outputs],
            answers=[list(output.outputs[0].token_ids) for output in outputs],
        )


def _conversation(image: Image.Image) -> Any:
    picture = {"type": "image_pil", "image_pil": image}
    question = {"type": "text", "text": QUESTION}
    return [{"role": "user", "content": [picture, question]}]


@contextmanager
def running(model: Path, num_visual: int) -> Iterator[Engine]:
    """``num_visual``: visual tokens of a request, at most."""
    engine = Engine(model, num_visual + _TEXT_TOKENS + GEN_LENGTH)
    try:
        yield engine
    finally:
        engine.llm.llm_engine.engine_core.shutdown()


def noise(size: tuple[int, int], number: int) -> list[Image.Image]:
    """Pictures of (width, height) pixels; every call returns others."""
    return [noise_image(size, next(_seeds)) for _ in range(number)]


def drawn(number: int) -> list[Image.Image]:
    """Pictures of the kind that ``lladav-tiny`` was trained on; every call returns
    others of the same sizes."""
    directory = str(Path(__file__).parents[1] / "examples" / "tiny")
    if directory not in sys.path:
        sys.path.append(directory)
    import pictures

    sizes = list(pictures.SIZES)
    found = []
    for index in range(number):
        rng = random.Random(next(_seeds))
        scene = pictures.draw_scene(rng, "heldout", sizes[index % len(sizes)])
        found.append(pictures.draw(scene, rng).image)
    return found
