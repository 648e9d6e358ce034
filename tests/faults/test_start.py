# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that cannot be served: the last line of the log names the cause."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.server.process import START_SECONDS, ServerProcess


def _cut_off(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:-1000])


def _not_a_number(weights: Path) -> None:
    tensors = load_file(weights)
    name = next(iter(tensors))
    tensors[name].view(-1)[0] = torch.nan
    save_file(tensors, weights, {"format": "pt"})


@pytest.mark.parametrize(
    ("harm", "cause"),
    [
        (_cut_off, "SafetensorError"),
        (_not_a_number, "has numbers that are not finite"),
        (Path.unlink, "Cannot find any model weights"),
    ],
)
def test_harmed_checkpoint(
    tiny_checkpoint: Path, tmp_path: Path, harm: Callable[[Path], None], cause: str
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, checkpoint)
    for weights in checkpoint.glob("*.safetensors"):
        harm(weights)
    server = ServerProcess.of(checkpoint, tmp_path / "log")
    try:
        code = server.exit_code(START_SECONDS)
    finally:
        server.stop()
    assert code == 1
    assert cause in server.log_tail(3)
