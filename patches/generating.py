# SPDX-License-Identifier: Apache-2.0
"""A bad request is refused before its streamed response begins; a late one ends.

Why: ``AsyncLLM.generate`` is a lazy generator, so what ``process_inputs`` and a full
queue refuse is found out when a streaming client already has its HTTP 200; the error
then comes as an event in the stream. Beam search, which a diffusion model does not
have, starts as lazily. And vLLM works on a request for as long as the client waits.
How: wraps ``AsyncLLM.generate`` in a function that runs ``process_inputs`` and
``check_admission`` on the rendered prompt once before it hands out the generator, and
that takes ``deadline_seconds`` out of ``vllm_xargs`` and keeps to it; and
``BeamSearchOnlineMixin.beam_search`` in one that refuses.
Affects: our models only.
Can go: when vLLM validates before it starts to stream, and knows deadlines.
"""

from typing import Any

from vllm_lladav.model.families import is_ours
from vllm_lladav.patches.wrapping import wrap


def apply() -> None:
    from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.engine.async_llm import AsyncLLM

    from vllm_lladav.options.reading import server_of
    from vllm_lladav.server.deadline import answers, take_deadline

    @wrap(AsyncLLM, "generate")
    def generate_if_valid(
        generate: Any,
        self: Any,
        prompt: Any,
        sampling_params: Any,
        request_id: str,
        **kwargs: Any,
    ) -> Any:
        if not is_ours(self.model_config):
            return generate(self, prompt, sampling_params, request_id, **kwargs)
        params, seconds = take_deadline(sampling_params, server_of(self.vllm_config))
        if isinstance(prompt, dict) and "type" in prompt:  # It is rendered.
            self.check_admission(params.n, request_id)
            self.input_processor.process_inputs(
                request_id, prompt, params, supported_tasks=("generate",)
            )
        outputs = generate(self, prompt, params, request_id, **kwargs)
        return answers(outputs, seconds)

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
