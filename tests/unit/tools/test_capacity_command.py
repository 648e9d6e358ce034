# SPDX-License-Identifier: Apache-2.0
"""``vllm-lladav capacity``: the checkpoints that it reads, its flags and output."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors import safe_open

from vllm_lladav.model.lladav.family import LLADAV
from vllm_lladav.tools import command
from vllm_lladav.tools.capacity.engine import (
    GPU_LOGITS_TILE_BYTES,
    LOGITS_TILE_BYTES,
    TILES_PER_FORWARD,
    Engine,
)
from vllm_lladav.tools.capacity.model import CONCURRENCY
from vllm_lladav.tools.checkpoint import PRESETS, read_checkpoint

EIGHT = PRESETS["8b"]


def test_the_preset_is_the_config_of_the_8b():
    from vllm_lladav.model.lladav.config import LladavConfig

    config = LladavConfig()
    assert LLADAV.shape(config, 126400) == EIGHT.shape
    assert config.pinpoints == EIGHT.pinpoints
    assert config.max_position_embeddings == EIGHT.max_model_len
    found = (config.tile_size, config.tile_grid, config.max_tiles, config.uses_anyres)
    assert found == (
        *(EIGHT.tile_size, EIGHT.tile_grid),
        *(EIGHT.max_tiles, EIGHT.uses_anyres),
    )


def test_weights_of_a_checkpoint(tiny_checkpoint: Path):
    """Within 1% of the elements in its files: norms and biases are left out, rows of
    the vocabulary are cut."""
    checkpoint = read_checkpoint(str(tiny_checkpoint))
    engine = Engine(checkpoint.shape, max_batched_tokens=1, dtype_bytes=4)
    stored = sum(_sizes(tiny_checkpoint))
    assert engine.weight_bytes / 4 == pytest.approx(stored, rel=0.01)


def _sizes(directory: Path) -> Iterator[int]:
    for file in directory.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no dictionary)
                yield math.prod(tensors.get_slice(name).get_shape())


def test_constants_of_the_engine():
    from vllm_lladav.model.lladav import vision
    from vllm_lladav.worker import predictor

    assert predictor.LOGITS_TILE_BYTES == LOGITS_TILE_BYTES
    assert predictor.GPU_LOGITS_TILE_BYTES == GPU_LOGITS_TILE_BYTES
    assert vision.TILES_PER_FORWARD == TILES_PER_FORWARD


def test_a_config_alone(tmp_path: Path, tiny_checkpoint: Path):
    """No tokenizer and no weights are needed."""
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    tower = "google/siglip2-so400m-patch14-384"
    config = {**config, "mm_vision_tower": tower, "mm_hidden_size": 1152}
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = read_checkpoint(str(tmp_path))
    assert checkpoint.shape.hidden_size == config["hidden_size"]
    assert checkpoint.shape.vocab_rows == config["vocab_size"]


def test_help_needs_neither_vllm_nor_torch():
    code = (
        "import sys; from vllm_lladav.tools.command import main\n"
        "try: main(['capacity', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert main(['capacity', '--gpu', 'h100', '--visual-tokens', '9']) == 0\n"
        "assert not {'vllm', 'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "Bound: " in done.stdout


def test_json(capsys):
    flags = ["--gpu", "h100", "--image", "384x384", "--concurrency", "4", "--json"]
    assert command.main(["capacity", *flags]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["request"]["visual_tokens"] == 1485
    assert values["requests_at_once"] == 4
    assert values["limited_by"] == CONCURRENCY
    assert values["bound"] == "arithmetic"
    seconds = values["step"]["seconds"] * values["request"]["steps"]
    # 1,741 tokens each, of 2,048 in a step.
    assert values["requests_in_a_step"] == 1
    assert values["requests_per_second"] == pytest.approx(1 / seconds)
    assert values["request_seconds"] == pytest.approx(4 * seconds)


def test_a_cpu(capsys):
    figures = "memory=64,peak=0.1,bandwidth=30"
    assert command.main(["capacity", "--cpu", "--machine", figures, "--json"]) == 0
    memory = json.loads(capsys.readouterr().out)["memory"]
    assert memory["logits_tile"] == LOGITS_TILE_BYTES
    assert memory["embeds_room"] == 0


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "name a machine with --gpu or --machine"),
        (["--machine", "peak=1"], "memory, bandwidth must be given"),
        (["--machine", "peak"], "'peak' is not name=value; names are memory, peak"),
        (["--machine", "speed=1"], "'speed=1' is not name=value"),
        (["--machine", "peak=fast"], "peak must be a number: 'fast'"),
        (["--gpu", "h100", "--machine", "peak=-3"], "peak must be above 0; got -3.0"),
        (["--gpu", "h100", "--machine", "peak=inf"], "peak must be a finite number"),
        (["--gpu", "h100", "--machine", "share=60"], "share must be above 0 and at mo"),
        (["--gpu", "h100", "--machine", "overhead=-1"], "overhead must be at least 0"),
        (["--gpu", "h100", "--dtype-bytes", "4"], "is that of bfloat16"),
        (
            ["--gpu", "h100", "--gen-length", "0"],
            "gen_length must be an integer of at least 1",
        ),
        (
            ["--gpu", "h100", "--gen-length", "128", "--block-length", "7"],
            "block_length must be a divisor",
        ),
        (["--gpu", "h100", "--block-length", "32", "--steps", "7"], "steps must be a"),
        (["--gpu", "h100", "--prune-rate", "1"], "prune_rate must be at least 0 (off)"),
        (["--gpu", "h100", "--prune-layer", "33"], "prune_layer must be at most 32"),
        (
            ["--gpu", "h100", "--concurrency", "0"],
            "concurrency must be an integer of at least 1; got 0",
        ),
        (["--gpu", "h100", "--tensor-parallel-size", "3"], "must divide the 32 heads"),
        (["--gpu", "h100", "--model", "/no/such"], "/no/such"),
        (
            ["--machine", "memory=80,peak=1,bandwidth=1", "--tensor-parallel-size=2"],
            "machine: link must be given for several ranks",
        ),
    ],
)
def test_bad_values(capsys, flags, message):
    assert command.main(["capacity", *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("vllm-lladav capacity: error: ")
    assert message in captured.err


def test_images_or_their_tokens(capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["capacity", "--image", "9x9", "--visual-tokens", "3"])
    assert end.value.code == 2
    assert "--visual-tokens: not allowed with" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--machine", "memory=17"], "no request fits into the memory"),
        (["--max-num-batched-tokens", "100"], "token budget (100) is smaller than"),
    ],
)
def test_nothing_fits(capsys, flags, message):
    assert command.main(["capacity", "--gpu", "h100", *flags]) == 1
    assert message in capsys.readouterr().err
