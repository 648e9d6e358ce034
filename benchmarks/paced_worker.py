# SPDX-License-Identifier: Apache-2.0
"""For ``--worker-extension-cls``: a step takes a fixed time for each of its requests.

As on a device that one request keeps busy and that no other process uses. What a server
does under load can then be measured on a machine that is shared, as long as its steps
would be over sooner.
"""

import os
import time
from typing import Any

from vllm.v1.worker.gpu_worker import Worker

from vllm_lladav.patches.wrapping import wrap

VARIABLE = "PACED_STEP_MS"
"""Of the environment: milliseconds."""


class Paced:
    """Nothing to add; being asked for is what imports this file."""


@wrap(Worker, "execute_model")
def paced(execute_model: Any, self: Worker, scheduler_output: Any) -> Any:
    start = time.monotonic()
    output = execute_model(self, scheduler_output)
    seconds = float(os.environ[VARIABLE]) / 1e3
    end = start + seconds * len(scheduler_output.num_scheduled_tokens)
    time.sleep(max(0.0, end - time.monotonic()))
    return output
