# SPDX-License-Identifier: Apache-2.0
"""What ``vllm serve`` and the model list show."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from openai import OpenAI

from tests.server.client import MODEL
from tests.server.process import VLLM, ServerProcess
from vllm_lladav.frontend.quiet_log import LINES


def test_model_is_served_under_its_alias(client: OpenAI) -> None:
    """The name is the alias of ``--model``, not the directory it stands for."""
    assert [model.id for model in client.models.list()] == [MODEL]


def test_log_is_quiet_about_what_we_set(server: ServerProcess) -> None:
    """All of its processes have started, each with warnings of its own."""
    log = server.log.read_text(encoding="utf-8", errors="replace")
    assert [line.start for line in LINES if line.start in log] == []
    assert "FutureWarning" not in log


@pytest.mark.slow
def test_benchmark_of_vllm_knows_the_alias(
    server: ServerProcess, tiny_checkpoint: Path
) -> None:
    """It loads the tokenizer by the name of the model."""
    command = [str(VLLM), "bench", "serve", "--model", MODEL]
    command += ["--backend", "openai-chat", "--endpoint", "/v1/chat/completions"]
    command += ["--base-url", server.url, "--dataset-name", "random"]
    command += ["--random-input-len", "8", "--random-output-len", "4"]
    result = subprocess.run(
        [*command, "--num-prompts", "2"],
        env={**os.environ, "VLLM_LLADAV_MODEL": str(tiny_checkpoint)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"Successful requests: +2\b", result.stdout)


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
        "--live-canvas",
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
@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        # Also where the value is the default.
        (
            ["lladav-tiny", "--prune-rate", "0.5"],
            {},
            "prune_rate needs --plugin pruning; got 0.5",
        ),
        (
            ["lladav"],
            {"VLLM_LLADAV_MODEL": "/no/such/directory"},
            "lladav stands for /no/such/directory: there is no such directory. Name a "
            "directory with a LLaDA-V checkpoint in its place, or set "
            "VLLM_LLADAV_MODEL to one",
        ),
        (
            ["lladav-tiny", "--quantization", "fp8"],
            {},
            "LLaDA-V cannot be served with quantization (--quantization fp8)",
        ),
    ],
    ids=["plugin", "directory", "quantization"],
)
def test_what_cannot_be_served_is_one_line(
    arguments: list[str], variables: dict[str, str], words: str
) -> None:
    """The reason, where the user looks, instead of a traceback."""
    result = subprocess.run(
        [str(VLLM), "serve", *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == f"vllm serve: error: {words}"
    assert "Traceback" not in result.stderr


def _help(group: str) -> str:
    command = [str(VLLM), "serve", f"--help={group}"]
    result = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, timeout=120
    )
    return result.stdout
