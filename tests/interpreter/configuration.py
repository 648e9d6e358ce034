# SPDX-License-Identifier: Apache-2.0
"""What vLLM's configuration is on a GPU, as JSON.

    python -m tests.interpreter.configuration OUTPUT '{"enforce_eager": true}'

The second argument are arguments of ``vllm.LLM``.
"""

import json
import sys
from pathlib import Path

from tests.interpreter.hopper import resolve_as_on_gpu


def main(output: str, engine_args: str) -> None:
    resolve_as_on_gpu()

    from vllm.engine.arg_utils import EngineArgs
    from vllm.plugins import load_general_plugins

    from vllm_lladav.denoising.whole_graphs import graph_rows_of

    load_general_plugins()
    config = EngineArgs("lladav-tiny", **json.loads(engine_args)).create_engine_config()
    found = {
        "cudagraph_mode": config.compilation_config.cudagraph_mode.name,
        "graph_sizes": config.compilation_config.cudagraph_capture_sizes,
        "whole_graph_rows": graph_rows_of(config.model_config),
        "use_non_causal": config.attention_config.use_non_causal,
        "async_scheduling": config.scheduler_config.async_scheduling,
        "v2_model_runner": config.use_v2_model_runner,
    }
    Path(output).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
