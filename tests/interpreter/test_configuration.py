# SPDX-License-Identifier: Apache-2.0
"""How vLLM is set up for a GPU, as vLLM itself resolves it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from vllm.platforms import current_platform

pytestmark = pytest.mark.skipif(
    not current_platform.is_cpu(), reason="on a GPU every other test shows it"
)
ROOT = Path(__file__).parents[2]


def configuration(directory: Path, **engine_args: Any) -> dict[str, Any]:
    output = directory / "configuration.json"
    module = "tests.interpreter.configuration"
    command = [sys.executable, "-m", module, str(output), json.dumps(engine_args)]
    subprocess.run(command, cwd=ROOT, check=True)
    return json.loads(output.read_text())


@pytest.mark.parametrize(
    ("engine_args", "mode"),
    [
        ({}, "PIECEWISE"),
        ({"compilation_config": {"cudagraph_mode": "FULL"}}, "PIECEWISE"),
        ({"compilation_config": {"cudagraph_mode": "NONE"}}, "NONE"),
        ({"enforce_eager": True}, "NONE"),
    ],
    ids=lambda value: json.dumps(value),
)
def test_graphs(tmp_path: Path, engine_args: dict[str, Any], mode: str):
    """vLLM's default would put a whole step, Python included, into one graph."""
    found = configuration(tmp_path, **engine_args)
    del found["graph_sizes"], found["whole_graph_rows"]
    assert found == {
        "cudagraph_mode": mode,
        "use_non_causal": True,
        "async_scheduling": True,
        "v2_model_runner": True,
    }


FULL = {"compilation_config": {"cudagraph_mode": "FULL_AND_PIECEWISE"}}


@pytest.mark.parametrize(
    ("engine_args", "rows"),
    [
        ({}, 0),
        ({"compilation_config": {"cudagraph_mode": "PIECEWISE"}}, 0),
        (FULL, 128),
        ({**FULL, "additional_config": {"lladav": {"block_length": 32}}}, 32),
        ({**FULL, "additional_config": {"lladav": {"gen_length": 64}}}, 64),
        (
            {
                **FULL,
                "additional_config": {"lladav": {"cache": "prompt", "gen_length": 64}},
            },
            64,
        ),
    ],
    ids=lambda value: json.dumps(value),
)
def test_whole_graphs(tmp_path: Path, engine_args: dict[str, Any], rows: int):
    """For who asks, of the rows that the server's cached steps have."""
    found = configuration(tmp_path, **engine_args)
    assert found["whole_graph_rows"] == rows
    assert found["cudagraph_mode"] == "PIECEWISE"


@pytest.mark.parametrize(
    ("engine_args", "sizes"),
    [
        ({"max_num_seqs": 3}, [16, 32, 64, 96, 128, 192, 256, 384]),
        (
            {"max_num_seqs": 3, "additional_config": {"lladav": {"block_length": 4}}},
            [12],
        ),
        ({"compilation_config": {"cudagraph_capture_sizes": [8, 40]}}, [8, 40]),
    ],
    ids=lambda value: json.dumps(value),
)
def test_graph_sizes(tmp_path: Path, engine_args: dict[str, Any], sizes: list[int]):
    """As many rows as cached steps have: blocks of all requests that may run."""
    assert configuration(tmp_path, **engine_args)["graph_sizes"] == sizes
