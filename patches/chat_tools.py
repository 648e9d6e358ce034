# SPDX-License-Identifier: Apache-2.0
"""Chat requests with ``tools`` are refused.

Why: the prompts of our models have no place for tools. vLLM would fall back to the
tokenizer's own template, which lacks the default system prompt, and answer a
request that was silently changed.
How: wraps ``vllm.renderers.hf.resolve_chat_template``.
Affects: our models only.
Can go: when vLLM asks the model whether it knows tools.
"""

from typing import Any

from vllm_lladav.model.families import family_of, is_ours
from vllm_lladav.patches.wrapping import wrap


def apply() -> None:
    from vllm.exceptions import VLLMValidationError
    from vllm.renderers import hf

    @wrap(hf, "resolve_chat_template")
    def resolve_without_tools(
        resolve: Any,
        tokenizer: Any,
        chat_template: Any,
        tools: Any,
        *,
        model_config: Any,
    ) -> Any:
        if tools and is_ours(model_config):
            name = family_of(model_config).name
            raise VLLMValidationError(
                f"tools is not supported: {name}'s prompt has no place for them",
                parameter="tools",
            )
        return resolve(tokenizer, chat_template, tools, model_config=model_config)
