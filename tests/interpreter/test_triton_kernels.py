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

from tests.interpreter.answers import ALONE, OF_FP8, REQUESTS

pytestmark = pytest.mark.skipif(
    not current_platform.is_cpu(), reason="a GPU runs these kernels itself"
)
NAMES = [*REQUESTS, *(f"alone/{name}" for name in ALONE)]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of the kernels of a CPU, of those of a GPU, and of those with K/V in FP8; by
    request."""
    directory = tmp_path_factory.mktemp("answers")
    command = [sys.executable, "-m", "tests.interpreter.answers"]
    processes = []
    for name in ("cpu", "gpu", "fp8"):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if name != "cpu":
            environment["TRITON_INTERPRET"] = "1"
        options = ["--fp8"] if name == "fp8" else []
        with (directory / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                [*command, str(directory / f"{name}.json"), *options],
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
        json.loads((directory / f"{name}.json").read_text()) for name, _ in processes
    ]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", NAMES)
def test_same_answer(answers, name: str):
    on_cpu, on_gpu = (found[name] for found in answers[:2])
    assert on_gpu["token_ids"] == on_cpu["token_ids"]
    assert on_gpu["logprobs"] == pytest.approx(on_cpu["logprobs"], abs=1e-4)
    assert len(on_cpu["token_ids"]) == 8


@pytest.mark.parametrize("name", OF_FP8)
def test_almost_the_same_in_fp8(answers, name: str):
    """FP8 has three bits behind the point: the model is about as sure of the same."""
    on_cpu, _, in_fp8 = answers
    assert in_fp8[name]["token_ids"] == on_cpu[name]["token_ids"]
    found, expected = in_fp8[name]["logprobs"], on_cpu[name]["logprobs"]
    assert found == pytest.approx(expected, abs=0.5)
    assert found != pytest.approx(expected, abs=1e-3)


def test_answers_differ(answers):
    """What is asked is told apart: caches and pruning change what comes out."""
    on_cpu = answers[0]
    outcomes = {json.dumps(on_cpu[name], sort_keys=True) for name in REQUESTS}
    assert len(outcomes) == len(REQUESTS)


def test_alone_as_in_the_batch(answers):
    for found in answers[:2]:
        for name in ALONE:
            alone = found[f"alone/{name}"]["token_ids"]
            assert alone == found[name]["token_ids"]
