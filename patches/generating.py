# SPDX-License-Identifier: Apache-2.0
"""A bad request is refused before its streamed response begins; a late one ends.

Why: ``AsyncLLM.generate`` is a lazy generator, so what ``process_inputs`` and a full
queue refuse is found out when a streaming client already has its HTTP 200; the error
then comes as an event in the stream. ``/v1/responses`` calls it as lazily, so that the
connection breaks off instead. Beam search, which a diffusion model does not have,
starts lazily, too. And vLLM works on a request for as long as the client waits.
How: wraps ``AsyncLLM.generate`` and the responses' ``_generate_with_builtin_tools`` in
functions that run ``check_admission`` and ``process_inputs`` on the rendered prompt
once before they hand out the generator, and ``BeamSearchOnlineMixin.beam_search`` in
one that refuses. They take ``deadline_seconds`` out of ``vllm_xargs``; who cannot be
answered in time is refused, too, and who is not is given up.
Affects: our models only.
Can go: when vLLM validates before it starts to stream, and knows deadlines.
"""

from typing import Any

from vllm_lladav.model.families import is_ours
from vllm_lladav.patches.wrapping import wrap


def apply() -> None:
    from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.engine.async_llm import AsyncLLM

    from vllm_lladav.options.reading import server_of
    from vllm_lladav.server.deadline import answers, check_in_time, take_deadline

    def check(engine: Any, request_id: str, prompt: Any, params: Any) -> Any:
        """The parameters for the engine, and the deadline."""
        params, seconds = take_deadline(params, server_of(engine.vllm_config))
        if isinstance(prompt, dict) and "type" in prompt:  # It is rendered.
            engine.check_admission(params.n, request_id)
            if seconds is not None:
                check_in_time(engine, seconds)
            engine.input_processor.process_inputs(
                request_id, prompt, params, supported_tasks=("generate",)
            )
        return params, seconds

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
        params, seconds = check(self, request_id, prompt, sampling_params)
        outputs = generate(self, prompt, params, request_id, **kwargs)
        return answers(outputs, seconds)

    @wrap(OpenAIServingResponses, "_generate_with_builtin_tools")
    def respond_if_valid(
        generate: Any,
        self: Any,
        request_id: str,
        engine_input: Any,
        sampling_params: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if is_ours(self.model_config):
            check(self.engine_client, request_id, engine_input, sampling_params)
        return generate(
            self, request_id, engine_input, sampling_params, *args, **kwargs
        )

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
