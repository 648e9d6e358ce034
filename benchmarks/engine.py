# SPDX-License-Identifier: Apache-2.0
"""How the benchmarks set up a ``vllm.LLM`` and ask it; ``vllm_lladav.tools.engine``
starts it.

Import it before vLLM and the Hugging Face libraries, which read the environment.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from common import QUESTION
from PIL import Image

for _name, _value in {
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    # Functions are sent to the worker, to measure there.
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
    # As `make serve` does: vLLM would leave a core to idle processes.
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
}.items():
    os.environ.setdefault(_name, _value)

TEXT_TOKENS = 256
"""Of a prompt without its visual tokens, at most."""

DEPLOYED: Mapping[str, str] = {}
"""Environment of an engine as a server has it: core and worker in other processes."""

CORE_HERE: Mapping[str, str] = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""Environment of an engine whose scheduler is in this process."""


def engine_options(longest: int, num_requests: int, **options: Any) -> dict[str, Any]:
    """Options of ``vllm.LLM`` in float32 whose steps take all requests at once. It
    prunes if a request asks for it.

    Args:
        longest: tokens of a request, prompt and canvas, at most.
        num_requests: at once.
        options: over the ones that are set here.
    """
    defaults: dict[str, Any] = {
        "dtype": "float32",
        "max_model_len": longest,
        "max_num_seqs": num_requests,
        "max_num_batched_tokens": num_requests * longest,
        "limit_mm_per_prompt": {"image": 1},
        "additional_config": {"lladav": {"plugin": "pruning", "prune_rate": 0}},
    }
    return {**defaults, **options}


class Run(NamedTuple):
    """Requests that were sent at once.

    Attributes:
        wall: seconds from sending them to the last answer.
        outputs: vLLM's ``RequestOutput`` of each.
    """

    wall: float
    outputs: list[Any]

    @property
    def reports(self) -> list[dict[str, Any]]:
        """What the plugin says of each request."""
        return [output.kv_transfer_params["lladav"] for output in self.outputs]

    @property
    def steps(self) -> float:
        """Denoising steps per request, on average."""
        return statistics.mean(report["denoising_steps"] for report in self.reports)

    @property
    def prompts(self) -> list[list[int]]:
        """Token ids of each prompt, one placeholder per visual token."""
        return [list(output.prompt_token_ids or ()) for output in self.outputs]

    @property
    def answers(self) -> list[list[int]]:
        """Token ids of each canvas."""
        return [list(output.outputs[0].token_ids) for output in self.outputs]


def sampling(gen_length: int, **xargs: Any) -> Any:
    """``SamplingParams`` of a greedy answer that fills its canvas."""
    from vllm import SamplingParams

    return SamplingParams(
        max_tokens=gen_length,
        temperature=0,
        ignore_eos=True,
        detokenize=False,
        extra_args={"gen_length": gen_length, **xargs},
    )


def ask(
    llm: Any,
    requests: Sequence[Sequence[Image.Image]],
    gen_length: int,
    image_mode: str | None = None,
    **xargs: Any,
) -> Run:
    """Send ``QUESTION`` with the pictures of each request, all at once.

    Args:
        image_mode: None for the checkpoint's.
        xargs: of all requests.
    """
    text = {"type": "text", "text": QUESTION}
    conversations = []
    for pictures in requests:
        images = [{"type": "image_pil", "image_pil": picture} for picture in pictures]
        conversations.append([{"role": "user", "content": [*images, text]}])
    kwargs = None if image_mode is None else {"image_mode": image_mode}
    params = sampling(gen_length, **xargs)
    return _timed(
        lambda: llm.chat(
            conversations, params, use_tqdm=False, mm_processor_kwargs=kwargs
        )
    )


def ask_without_images(
    llm: Any, num_requests: int, prompt_len: int, gen_length: int, **xargs: Any
) -> Run:
    """Send prompts of arbitrary tokens, all at once."""
    prompts = [
        {"prompt_token_ids": [100 + (7 * i + j) % 250 for j in range(prompt_len)]}
        for i in range(num_requests)
    ]
    params = sampling(gen_length, **xargs)
    return _timed(lambda: llm.generate(prompts, params, use_tqdm=False))


def _timed(send: Callable[[], list[Any]]) -> Run:
    start = time.perf_counter()
    outputs = send()
    return Run(time.perf_counter() - start, outputs)
