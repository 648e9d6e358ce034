# SPDX-License-Identifier: Apache-2.0
"""Requests are checked and resolved before they reach the engine.

Why: what a diffusion model cannot do must be an HTTP 400; some of it (a JSON
schema, for one) would otherwise stop the engine core.
How: wraps ``InputProcessor.process_inputs``, the one place through which every
request of the server and of ``LLM`` passes in the front end, and where the
prompt is already tokenised and its images are counted.
Affects: requests to our models only.
Can go: when vLLM gives model plugins a request validation hook.
"""

from typing import Any

from vllm_lladav.model.families import family_of, is_ours
from vllm_lladav.patches.wrapping import wrap


def apply() -> None:
    from vllm.v1.engine.input_processor import InputProcessor

    @wrap(InputProcessor, "process_inputs")
    def process_checked_inputs(
        process: Any,
        self: Any,
        request_id: str,
        prompt: Any,
        params: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if not is_ours(self.model_config):
            return process(self, request_id, prompt, params, *args, **kwargs)
        from vllm_lladav.frontend.admission import check_request, resolve_request
        from vllm_lladav.frontend.sent_images import accept_images

        check_request(family_of(self.model_config), prompt, params)
        request = process(self, request_id, prompt, params, *args, **kwargs)
        resolve_request(request, params, self.vllm_config, self.tokenizer)
        accept_images(self.renderer, request)
        return request
