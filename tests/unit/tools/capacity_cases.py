# SPDX-License-Identifier: Apache-2.0
"""A small decoder for the tests of ``vllm-lladav capacity``."""

from dataclasses import replace
from functools import partial
from typing import Any

from vllm_lladav.model.flops import ModelShape
from vllm_lladav.tools.capacity import request
from vllm_lladav.tools.capacity.engine import Engine

SMALL = ModelShape(
    hidden_size=8,
    intermediate_size=16,
    num_layers=4,
    num_heads=2,
    num_kv_heads=2,
    head_dim=4,
    vocab_rows=100,
)
make_plan = partial(request.make_plan, num_layers=SMALL.num_layers)


def make_engine(**changes: Any) -> Engine:
    engine = Engine(SMALL, max_batched_tokens=10_000, block_size=4, full_step_tokens=0)
    return replace(engine, **changes)
