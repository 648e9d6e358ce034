# SPDX-License-Identifier: Apache-2.0
"""Answers of ``lladav-tiny`` to a few requests, in one batch and alone, as JSON.

    python -m tests.interpreter.answers answers.json
    TRITON_INTERPRET=1 python -m tests.interpreter.answers answers.json
    TRITON_INTERPRET=1 python -m tests.interpreter.answers answers.json --fp8

The second runs what a GPU runs: vLLM's Triton kernels, those of Model Runner V2 and of
its Triton attention, in Triton's interpreter. The first runs what a CPU runs instead. A
process is one or the other for good: Triton and vLLM decide while they are imported.
The third has K/V in FP8, and fewer requests.
"""

import argparse
import json
import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from examples.tiny import pictures, prompts
from tests.interpreter.hopper import interpret_triton
from vllm_lladav.model.lladav.prompt import IMAGE_MARK

PRUNED = {"prune_rate": 0.5, "prune_layer": 2}
DUAL = {"cache": "dual"}
SHORT = {"gen_length": 8, "block_length": 8, "steps": 2}
BLOCKS = {"gen_length": 8, "block_length": 4, "steps": 4}

REQUESTS: dict[str, dict[str, Any]] = {
    "text": {"picture": False, "args": {**BLOCKS, "steps": 8}},
    "exact": {"args": BLOCKS},
    "dual": {"args": {**BLOCKS, **DUAL}},
    "prompt_cache": {"args": {**BLOCKS, "cache": "prompt", "refresh_interval": 3}},
    "pruned": {"args": {**SHORT, **PRUNED}},
    "pruned_dual": {"args": {**BLOCKS, **PRUNED, **DUAL}},
    "pruned_compact": {"args": {**SHORT, **PRUNED, "prune_positions": "compact"}},
    "guided": {"args": {**SHORT, "cfg_scale": 1.0}},
    "guided_pruned_dual": {"args": {**BLOCKS, **PRUNED, **DUAL, "cfg_scale": 1.0}},
    "sampled": {"temperature": 1.0, "args": SHORT},
}
"""What is asked, by name. ``args`` are ``vllm_xargs``."""

ALONE = ("text", "pruned_dual")
"""Those that are asked alone, too."""

OF_FP8 = ("dual", "pruned", "pruned_dual")
"""Those that are asked where K/V are FP8."""


def sampling_params(request: dict[str, Any]) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        temperature=request.get("temperature", 0.0),
        seed=7,
        max_tokens=None,
        ignore_eos=True,
        logprobs=0,
        extra_args=request["args"],
    )


def prompt(request: dict[str, Any]) -> dict[str, Any]:
    """About a small picture: the interpreter takes seconds for a hundred tokens."""
    if not request.get("picture", True):
        text = prompts.prompt_text("What is red?").replace(IMAGE_MARK + "\n", "")
        return {"prompt": text}
    rng = random.Random("interpreter")
    picture = pictures.draw(pictures.draw_scene(rng, "heldout"), rng).image
    return {
        "prompt": prompts.prompt_text("Describe the picture."),
        "multi_modal_data": {"image": picture},
        "mm_processor_kwargs": {"image_mode": "pad_stacked"},
    }


def outcome(answer: Any) -> dict[str, Any]:
    """Of the harness's ``Answer``: token ids and their log-probabilities."""
    logprobs = [
        of_token[token_id].logprob
        for token_id, of_token in zip(answer.token_ids, answer.logprobs, strict=True)
    ]
    return {"token_ids": answer.token_ids, "logprobs": logprobs}


def answers(names: Iterable[str], alone: Iterable[str], **options: Any) -> Any:
    """Token ids and their log-probabilities, by name: of requests in one batch, and of
    those asked alone as ``alone/<name>``. ``options``: of the engine."""
    import torch

    from tests.engine.harness import Engine

    torch.set_num_threads(1)
    engine = Engine("lladav-tiny", max_num_seqs=len(REQUESTS) + 2, **options)
    for name in names:
        request = REQUESTS[name]
        engine.add(prompt(request), sampling_params(request), name)
    found = engine.finish()
    for name in alone:
        request = REQUESTS[name]
        answer = engine.answer(prompt(request), sampling_params(request))
        found[f"alone/{name}"] = answer
    return {name: outcome(answer) for name, answer in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--fp8", action="store_true")
    args = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        interpret_triton()
    if args.fp8:
        found = answers(OF_FP8, (), kv_cache_dtype="fp8")
    else:
        found = answers(REQUESTS, ALONE)
    args.output.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
