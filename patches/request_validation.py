# SPDX-License-Identifier: Apache-2.0
"""Requests are checked and resolved before they reach the engine.

Why: what a diffusion model cannot do must be an HTTP 400; some of it (a JSON
schema, for one) would otherwise stop the engine core.
How: wraps ``InputProcessor.process_inputs``, the one place through which every
request of the server and of ``LLM`` passes in the front end, and where the
prompt is already tokenised and its images are counted.
Affects: requests to LLaDA-V only.
Can go: when vLLM gives model plugins a request validation hook.
"""

import functools
from typing import Any


def apply() -> None:
    from vllm.v1.engine.input_processor import InputProcessor

    from vllm_lladav.model.lladav.config import ARCHITECTURE

    process_inputs = InputProcessor.process_inputs
    if hasattr(process_inputs, "lladav"):
        return

    @functools.wraps(process_inputs)
    def process_checked_inputs(
        self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if self.model_config.architecture != ARCHITECTURE:
            return process_inputs(self, request_id, prompt, params, *args, **kwargs)
        from vllm_lladav.frontend.admission import check_request, resolve_request

        check_request(prompt, params)
        request = process_inputs(self, request_id, prompt, params, *args, **kwargs)
        resolve_request(request, params, self.vllm_config, self.tokenizer)
        return request

    process_checked_inputs.lladav = True  # type: ignore[attr-defined]
    InputProcessor.process_inputs = process_checked_inputs
