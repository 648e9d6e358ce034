# SPDX-License-Identifier: Apache-2.0
"""The project's own kernels, without a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from vllm.platforms import current_platform

pytestmark = pytest.mark.skipif(
    not current_platform.is_cpu(), reason="a GPU runs these kernels itself"
)
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "script", ["greedy_choice", "sampled_choice", "received", "compile_kernels"]
)
def test_script(script: str):
    """Its assertions hold: each kernel is what its twin is; it compiles for sm_90."""
    interprets = script != "compile_kernels"
    environment = os.environ | ({"TRITON_INTERPRET": "1"} if interprets else {})
    here = "tests.interpreter"
    command = [sys.executable, "-m", f"{here}.hopper", f"{here}.{script}"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
