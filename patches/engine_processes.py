# SPDX-License-Identifier: Apache-2.0
"""The processes of an engine end when their parent wants, and with it.

Why: a terminal sends SIGINT to all processes at once: vLLM's workers end in the middle
of requests that the server wanted to finish. And where the API server is killed, its
engine runs on, and holds its memory, for ever.
How: wraps ``Executor.__init__`` and ``WorkerWrapperBase.init_device``, which run once
vLLM has set its signal handlers: SIGINT is ignored, and an engine core whose parent is
gone ends as on SIGTERM. Its workers end with it. Their logs leave out what
``frontend/quiet_log.py`` says, a worker gets its patches, and what was imported is kept
from the garbage collector: vLLM calls it half a dozen times while it loads a model,
which took 0.3 s each.
Affects: processes that vLLM started for our models; never the user's own.
Can go: when vLLM does so itself.
"""

import gc
import multiprocessing
import os
import signal
import threading
import time
from contextlib import suppress
from typing import Any

from vllm_lladav.frontend.quiet_log import quiet_log
from vllm_lladav.model.families import is_ours
from vllm_lladav.patches import apply_for_worker
from vllm_lladav.patches.wrapping import wrap

LOOK_S = 1.0
"""Between two looks for the parent."""
EXIT_S = 10.0
"""For an orphan to end by itself; it is cut short then."""


def apply() -> None:
    from vllm.v1.executor.abstract import Executor
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    @wrap(Executor, "__init__")
    def start_workers(init: Any, self: Any, vllm_config: Any) -> None:
        if is_ours(vllm_config.model_config):
            quiet_log()
        if _is_engine_process(vllm_config):
            gc.freeze()
            _ignore_interrupts()
            watch = threading.Thread(
                target=_end_with, args=(os.getppid(),), name="parent", daemon=True
            )
            watch.start()
        init(self, vllm_config)

    @wrap(WorkerWrapperBase, "init_device")
    def start_working(init_device: Any, self: Any) -> None:
        if is_ours(self.vllm_config.model_config):
            quiet_log()
            apply_for_worker()
        if _is_engine_process(self.vllm_config):
            gc.freeze()
            _ignore_interrupts()
        init_device(self)


def _is_engine_process(vllm_config: Any) -> bool:
    is_child = multiprocessing.parent_process() is not None
    return is_child and is_ours(vllm_config.model_config)


def _ignore_interrupts() -> None:
    with suppress(ValueError):  # Not in the main thread.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(EXIT_S)
    os._exit(1)
