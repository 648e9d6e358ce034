# SPDX-License-Identifier: Apache-2.0
"""Which of vLLM's norms runs in a forward pass that nothing compiles."""

from unittest.mock import patch

import pytest
import torch
from vllm import ir

from vllm_lladav.model.fused_norms import KERNELS, fused_norms

OPS = (ir.ops.rms_norm, ir.ops.fused_add_rms_norm)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_kernels_go_first_where_there_are_some(op):
    import vllm.kernels.vllm_c  # noqa: F401 - registers them

    before = op.get_priority()
    with patch.object(op.impls[KERNELS], "supported", True), fused_norms():
        assert op.get_priority()[0] == KERNELS
        # What they cannot do is done as before.
        assert op.get_priority()[-1] == "native"
    assert op.get_priority() == before


def test_a_cpu_keeps_what_it_has():
    before = [op.get_priority() for op in OPS]
    numbers = torch.randn(3, 8)
    expected = ir.ops.rms_norm(numbers, torch.ones(8), 1e-6)
    with fused_norms():
        assert [op.get_priority() for op in OPS] == before
        assert torch.equal(ir.ops.rms_norm(numbers, torch.ones(8), 1e-6), expected)
