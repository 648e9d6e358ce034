# SPDX-License-Identifier: Apache-2.0
"""How many matrix kernels oneDNN keeps in a process of the server."""

import os
import platform
import subprocess
import sys

import pytest
from vllm.platforms import current_platform

from vllm_lladav.patches.cpu_primitives import CAPACITY, NAMES, apply

COMPILED = "primitive,create:cache_miss,cpu,matmul"
"""How oneDNN says that it compiles a kernel."""

SCRIPT = """
import sys
import torch
import vllm._custom_ops as ops
from vllm.platforms import current_platform
from vllm_lladav.plugin import register

register()
current_platform.import_kernels()
# The layer itself keeps a single one.
layer = ops.create_onednn_mm(torch.randn(16, 16).t(), 1)
for rows in map(int, sys.argv[1:]):
    ops.onednn_mm(layer, torch.randn(rows, 16), None)
"""


@pytest.mark.skipif(
    not current_platform.is_cpu() or platform.machine() != "x86_64",
    reason="products are oneDNN's on x86 CPUs",
)
def test_recent_kernels_are_kept_and_old_ones_let_go():
    first, last = 1, CAPACITY + 20
    shapes = [*range(first, last), last - 20, first]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, shapes)],
        env={
            **{name: os.environ[name] for name in os.environ if name not in NAMES},
            "ONEDNN_VERBOSE": "profile_create",
        },
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    compiled = sum(COMPILED in line for line in done.stdout.splitlines())
    assert compiled == len(shapes) - 1


@pytest.mark.parametrize("name", NAMES)
def test_who_has_set_it_is_left_alone(name: str, monkeypatch: pytest.MonkeyPatch):
    for other in NAMES:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "7")
    apply()
    assert {os.environ.get(other) for other in NAMES} == {"7", None}
