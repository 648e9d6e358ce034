# SPDX-License-Identifier: Apache-2.0
"""Which steps a GPU may run as a single CUDA graph."""

from typing import Any


def keep_graph_rows(model_config: Any, num_rows: int) -> None:
    """Tell every process that steps in which each sequence computes ``num_rows`` are
    to be whole graphs. With the config, as :mod:`vllm_lladav.denoising.traits`."""
    model_config.hf_config.lladav_graph_rows = num_rows


def graph_rows_of(model_config: Any) -> int:
    """Rows of a sequence in a step that is a whole graph; 0 without such graphs."""
    return getattr(model_config.hf_config, "lladav_graph_rows", 0)
