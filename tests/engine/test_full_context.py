# SPDX-License-Identifier: Apache-2.0
"""Requests that fill the context up to its last token."""

from pathlib import Path

import pytest
import torch
from vllm import SamplingParams

from tests.engine.harness import Engine

MAX_MODEL_LEN = 96


@pytest.fixture(scope="module")
def small(start_engine, tiny_checkpoint: Path) -> Engine:
    return start_engine(tiny_checkpoint, max_model_len=MAX_MODEL_LEN, max_num_seqs=2)


@pytest.mark.parametrize("prompt_len", [1, 40])
@pytest.mark.parametrize(
    "args",
    [
        *({"cache": cache} for cache in ("none", "prompt", "prefix", "dual")),
        {"denoising": "fast"},
        {"steps": 1},
    ],
    ids=str,
)
def test_longest_request(small: Engine, args: dict[str, object], prompt_len: int):
    """What a step hands out, its report included, stays in the request's row of what
    vLLM's runner keeps, whose next row is another request's."""
    runner = small.core.model_executor.driver_worker.worker.model_runner
    rows = runner.req_states.all_token_ids.gpu
    assert rows.shape[1] == MAX_MODEL_LEN
    gen_length = MAX_MODEL_LEN - 1 - prompt_len
    params = SamplingParams(
        temperature=0,
        max_tokens=None,
        ignore_eos=True,
        extra_args={"gen_length": gen_length, "block_length": gen_length, **args},
    )
    first = small.add({"prompt_token_ids": [5] * prompt_len}, params)
    small.step()
    slot = runner.req_states.req_id_to_index
    (own,) = slot.values()
    others = [row for row in range(len(rows)) if row != own]
    rows[others] = -7
    answer = small.finish()[first]
    assert len(answer.token_ids) == gen_length
    assert torch.all(rows[others] == -7)
    assert int(runner.req_states.total_len.gpu[own]) <= MAX_MODEL_LEN
