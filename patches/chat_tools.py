# SPDX-License-Identifier: Apache-2.0
"""Chat requests with ``tools`` are refused.

Why: LLaDA-V's prompt has no place for tools. vLLM would fall back to the
tokenizer's own template, which lacks the default system prompt, and answer a
request that was silently changed.
How: wraps ``vllm.renderers.hf.resolve_chat_template``.
Affects: LLaDA-V only.
Can go: when vLLM asks the model whether it knows tools.
"""

import functools
from typing import Any


def apply() -> None:
    from vllm.exceptions import VLLMValidationError
    from vllm.renderers import hf

    from vllm_lladav.model.lladav.config import ARCHITECTURE

    resolve_chat_template = hf.resolve_chat_template
    if hasattr(resolve_chat_template, "lladav"):
        return

    @functools.wraps(resolve_chat_template)
    def resolve_without_tools(
        tokenizer: Any, chat_template: Any, tools: Any, *, model_config: Any
    ) -> Any:
        if tools and model_config.architecture == ARCHITECTURE:
            raise VLLMValidationError(
                "tools is not supported: LLaDA-V's prompt has no place for them",
                parameter="tools",
            )
        return resolve_chat_template(
            tokenizer, chat_template, tools, model_config=model_config
        )

    resolve_without_tools.lladav = True  # type: ignore[attr-defined]
    hf.resolve_chat_template = resolve_without_tools
