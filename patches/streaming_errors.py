# SPDX-License-Identifier: Apache-2.0
"""A bad request is refused before its streamed response begins.

Why: ``AsyncLLM.generate`` is a lazy generator, so what ``process_inputs``
refuses is found out when a streaming client already has its HTTP 200; the error
then comes as an event in the stream. Beam search, which a diffusion model does
not have, starts as lazily.
How: wraps ``AsyncLLM.generate`` in a function that runs ``process_inputs`` on
the rendered prompt once before it hands out the generator, and
``BeamSearchOnlineMixin.beam_search`` in one that refuses.
Affects: our models only.
Can go: when vLLM validates before it starts to stream.
"""

from typing import Any

from vllm_lladav.model.families import is_ours
from vllm_lladav.patches.wrapping import wrap


def apply() -> None:
    from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.engine.async_llm import AsyncLLM

    @wrap(AsyncLLM, "generate")
    def generate_if_valid(
        generate: Any,
        self: Any,
        prompt: Any,
        sampling_params: Any,
        request_id: str,
        **kwargs: Any,
    ) -> Any:
        is_rendered = isinstance(prompt, dict) and "type" in prompt
        if is_ours(self.model_config) and is_rendered:
            self.input_processor.process_inputs(
                request_id, prompt, sampling_params, supported_tasks=("generate",)
            )
        return generate(self, prompt, sampling_params, request_id, **kwargs)

    @wrap(BeamSearchOnlineMixin, "beam_search")
    def refuse_beam_search(
        beam_search: Any, self: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if is_ours(self.engine_client.model_config):
            raise VLLMValidationError(
                "use_beam_search is not supported by a masked-diffusion model",
                parameter="use_beam_search",
            )
        return beam_search(self, *args, **kwargs)
