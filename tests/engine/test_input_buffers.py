# SPDX-License-Identifier: Apache-2.0
"""Every step's inputs lie in the buffers that a captured CUDA graph reads."""

from unittest.mock import patch

import pytest

from tests.engine.harness import Engine, prompt_of, sampling_of
from tests.golden.cases import GoldenCase

PRUNED = {"prune_rate": 0.5, "prune_layer": 2}


@pytest.mark.parametrize(
    "options",
    [{}, PRUNED, {"cfg_scale": 1.0}, {**PRUNED, "cfg_scale": 1.0, "cache": "dual"}],
    ids=["plain", "pruned", "guided", "guided_pruned_dual"],
)
def test_addresses(engine: Engine, golden_cases: dict[str, GoldenCase], options):
    runner = engine.core.model_executor.driver_worker.worker.model_runner
    buffers = {
        "positions": runner.input_buffers.positions.data_ptr(),
        "inputs_embeds": engine.state.encoder_runner.inputs_embeds.data_ptr(),
    }
    forward, found = type(engine.model).forward, []

    def observed(self, **inputs):
        found.append({name: inputs[name].data_ptr() for name in buffers})
        return forward(self, **inputs)

    case = golden_cases["img_square"]
    params = sampling_of(case)
    params.extra_args = {**params.extra_args, **options}
    with patch.object(type(engine.model), "forward", observed):
        name = engine.add(prompt_of(case), params)
        engine.step(3)
    engine.abort(name)
    assert found == [buffers] * 3
