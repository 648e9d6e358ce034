# SPDX-License-Identifier: Apache-2.0
"""What ``vllm serve`` and the model list show."""

import re
import subprocess

import pytest
from openai import OpenAI

from tests.server.client import MODEL
from tests.server.process import VLLM


def test_model_is_served_under_its_alias(client: OpenAI) -> None:
    """The name is the alias of ``--model``, not the directory it stands for."""
    assert [model.id for model in client.models.list()] == [MODEL]


@pytest.mark.slow
def test_help_lists_the_flags_in_their_own_group() -> None:
    """``--help=LLaDA-V`` prints our flags and no other group."""
    text = _help("LLaDA-V")
    flags = re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE)
    assert set(flags) == {
        "--plugin",
        "--denoising",
        "--gen-length",
        "--block-length",
        "--tokens-per-step",
        "--remasking",
        "--stop-search",
        "--max-gen-length",
        "--confidence-threshold",
        "--confidence-factor",
        "--cache",
        "--refresh-interval",
        "--cfg-scale",
        "--full-step-tokens",
        "--deadline-seconds",
        "--step-overdue-seconds",
        "--max-body-mib",
        "--max-image-pixels",
        "--max-request-image-pixels",
        "--image-uuids",
        "--prune-rate",
        "--prune-layer",
        "--prune-stages",
        "--prune-policy",
        "--prune-queries",
        "--prune-positions",
        "--prune-min-visual-tokens",
        "--prune-tau",
    }
    assert "\nLLaDA-V:\n" in "\n" + text


@pytest.mark.slow
def test_flags_of_pruning_need_the_plugin() -> None:
    """Also where the value is the default."""
    command = [str(VLLM), "serve", "lladav-tiny", "--prune-rate", "0.5"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode != 0
    assert "prune_rate needs --plugin pruning; got 0.5" in result.stderr


def _help(group: str) -> str:
    command = [str(VLLM), "serve", f"--help={group}"]
    result = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, timeout=120
    )
    return result.stdout
