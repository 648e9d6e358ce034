# SPDX-License-Identifier: Apache-2.0
"""What goes wrong where a worker loads a model is told by the server.

Why, and how it gets there: ``start_errors.py``.
How: wraps ``Worker.load_model``.
Affects: our models only.
Can go: when vLLM's processes report the cause.
"""

from typing import Any

from vllm_lladav.patches.start_errors import left_behind
from vllm_lladav.patches.wrapping import wrap


def apply() -> None:
    from vllm.v1.worker.gpu_worker import Worker

    @wrap(Worker, "load_model")
    def load_model(load: Any, self: Any, *args: Any, **kwargs: Any) -> None:
        with left_behind(self.vllm_config):
            load(self, *args, **kwargs)
