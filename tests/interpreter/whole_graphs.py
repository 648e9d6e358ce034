# SPDX-License-Identifier: Apache-2.0
"""Cached steps as whole graphs, without a GPU: what a graph would hold is run again.

    TRITON_INTERPRET=1 python -m tests.interpreter.whole_graphs OUTPUT

A replay is the forward pass over the tensors, and with the Python values, of the time
when it was captured: where a step's inputs lie anywhere else, the answer is wrong.
"""

import json
import sys
from pathlib import Path
from typing import Any

from tests.interpreter.answers import REQUESTS, outcome, prompt, sampling_params
from tests.interpreter.hopper import interpret_triton

BATCHES: dict[str, tuple[str, ...]] = {
    "alone": ("dual",),
    "uniform": ("dual", "pruned_dual", "guided_pruned_dual"),
    "mixed": ("dual", "prompt_cache"),
}
NUM_ROWS = 4
"""Of a cached step: blocks of the requests."""

NUM_SEQUENCES = (1, 6)
"""That are captured: four are padded."""


def run(engine: Any) -> dict[str, list[Any]]:
    """Tokens and log-probabilities of all requests, batch by batch."""
    found = {}
    for batch, names in BATCHES.items():
        for name in names:
            request = REQUESTS[name]
            engine.add(prompt(request), sampling_params(request), name)
        answers = engine.finish()
        found[batch] = [outcome(answers[name]) for name in names]
    return found


def main(output: str) -> None:
    interpret_triton()

    import torch
    from vllm.config.compilation import CUDAGraphMode
    from vllm.platforms import current_platform
    from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager

    from tests.engine.harness import Engine
    from vllm_lladav.worker import step_graphs

    replayed: list[tuple[int, int]] = []

    class Rerun(CudaGraphManager):
        def capture(self, create_forward_fn: Any, progress_bar_desc: str = "") -> None:
            for desc in self._capture_descs[CUDAGraphMode.FULL]:
                create_forward_fn(desc, warmup=True)(CUDAGraphMode.NONE)
                graph: Any = create_forward_fn(desc, warmup=False)
                graph(CUDAGraphMode.NONE)
                self.graphs[desc] = graph
            self._graphs_captured = True

        def run_fullgraph(self, desc: Any) -> None:
            graph: Any = self.graphs[desc]
            graph(CUDAGraphMode.NONE)
            replayed.append((desc.num_reqs, desc.num_tokens))

    torch.set_num_threads(1)
    engine = Engine("lladav-tiny", max_num_seqs=6)
    before = run(engine)
    assert not replayed

    type(current_platform)._global_graph_pool = object()
    step_graphs.StepGraphs.manager_cls = Rerun
    step_graphs.NUM_SEQUENCES = NUM_SEQUENCES
    runner = engine.core.model_executor.driver_worker.worker.model_runner
    runner.model_config.hf_config.lladav_graph_rows = NUM_ROWS
    with torch.inference_mode():
        engine.state.capture_inner_cudagraphs(
            runner.input_buffers,
            runner.block_tables,
            runner.attn_groups,
            runner.kv_cache_config,
        )
    after = run(engine)
    found = {"before": before, "after": after, "replayed": replayed}
    Path(output).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
