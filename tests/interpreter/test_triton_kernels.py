# SPDX-License-Identifier: Apache-2.0
"""The engine on the kernels of a GPU: vLLM's, in Triton's interpreter.

On a CPU, torch functions stand in for the Triton kernels of vLLM's model runner, and
another backend attends. Here nothing stands in, so that what these kernels refuse, or
compute otherwise, is found without a GPU.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from vllm.platforms import current_platform

from tests.interpreter.answers import ALONE, REQUESTS

pytestmark = pytest.mark.skipif(
    not current_platform.is_cpu(), reason="a GPU runs these kernels itself"
)
NAMES = [*REQUESTS, *(f"alone/{name}" for name in ALONE)]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of the kernels of a CPU and of those of a GPU, by request."""
    directory = tmp_path_factory.mktemp("answers")
    command = [sys.executable, "-m", "tests.interpreter.answers"]
    processes = []
    for name in ("cpu", "gpu"):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if name == "gpu":
            environment["TRITON_INTERPRET"] = "1"
        with (directory / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                [*command, str(directory / f"{name}.json")],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=Path(__file__).parents[2],
            )
        processes.append((name, process))
    for name, process in processes:
        if process.wait():
            log_text = (directory / f"{name}.log").read_text()
            pytest.fail(f"no answers on the kernels of a {name}:\n{log_text[-4000:]}")
    return [
        json.loads((directory / f"{name}.json").read_text()) for name in ("cpu", "gpu")
    ]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", NAMES)
def test_same_answer(answers, name: str):
    on_cpu, on_gpu = (found[name] for found in answers)
    assert on_gpu["token_ids"] == on_cpu["token_ids"]
    assert on_gpu["logprobs"] == pytest.approx(on_cpu["logprobs"], abs=1e-4)
    assert len(on_cpu["token_ids"]) == 8


def test_answers_differ(answers):
    """What is asked is told apart: caches and pruning change what comes out."""
    on_cpu, _ = answers
    outcomes = {json.dumps(on_cpu[name], sort_keys=True) for name in REQUESTS}
    assert len(outcomes) == len(REQUESTS)


def test_alone_as_in_the_batch(answers):
    for found in answers:
        for name in ALONE:
            alone = found[f"alone/{name}"]["token_ids"]
            assert alone == found[name]["token_ids"]
