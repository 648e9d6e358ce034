# SPDX-License-Identifier: Apache-2.0
"""``make gpu-check`` on this machine: the recorded answers are this engine's."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"


def test_recorded_tokens(tmp_path: Path):
    command = [sys.executable, str(SCRIPT), "--stages", "tokens"]
    subprocess.run([*command, "--results", str(tmp_path)], check=True)
    report = json.loads((tmp_path / "gpu-check.json").read_text())
    found = report["stages"]["tokens"]
    assert found["alone"] == found["in_a_batch"] == found["of"] == 13
    assert "13 alone and 13 in a batch" in (tmp_path / "gpu-check.md").read_text()


def test_a_failed_stage_is_reported(tmp_path: Path):
    command = [sys.executable, str(SCRIPT), "--stages", "speed", "--requests", "0"]
    done = subprocess.run([*command, "--results", str(tmp_path)], check=False)
    assert done.returncode == 1
    assert "**speed failed.**" in (tmp_path / "gpu-check.md").read_text()
