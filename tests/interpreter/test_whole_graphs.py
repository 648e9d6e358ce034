# SPDX-License-Identifier: Apache-2.0
"""Cached steps that are whole graphs give what they give in pieces."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from vllm.platforms import current_platform

from tests.interpreter.whole_graphs import BATCHES

pytestmark = pytest.mark.skipif(
    not current_platform.is_cpu(), reason="a GPU captures graphs itself"
)


@pytest.mark.timeout(1200)
def test_same_answers(tmp_path: Path):
    """Cached, pruned and guided, padded; what does not fit runs as ever."""
    output = tmp_path / "answers.json"
    subprocess.run(
        [sys.executable, "-m", "tests.interpreter.whole_graphs", str(output)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"},
        check=True,
    )
    found = json.loads(output.read_text())
    for batch in BATCHES:
        for after, before in zip(
            found["after"][batch], found["before"][batch], strict=True
        ):
            assert after["token_ids"] == before["token_ids"]
            assert after["logprobs"] == pytest.approx(before["logprobs"], abs=1e-4)
    # Two of four steps are cached: of one sequence, then of four, padded to six.
    assert found["replayed"] == [[1, 4]] * 2 + [[6, 24]] * 2
