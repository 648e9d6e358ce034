# SPDX-License-Identifier: Apache-2.0
"""``/detokenize`` refuses ids that are no tokens.

Why: an id past 32 bits is an error that names no field, and one past the vocabulary is
left out of the text without a word.
How: wraps ``ServingTokenization.create_detokenize``.
Affects: our models only.
Can go: when vLLM checks the ids there, as it does in prompts.
"""

from typing import Any

from vllm_lladav.model.families import is_ours
from vllm_lladav.patches.wrapping import wrap


def apply() -> None:
    from vllm.entrypoints.serve.tokenize.serving import ServingTokenization
    from vllm.exceptions import VLLMValidationError

    @wrap(ServingTokenization, "create_detokenize")
    async def detokenize_tokens(
        detokenize: Any, self: Any, request: Any, raw_request: Any
    ) -> Any:
        if is_ours(self.model_config):
            number = self.model_config.get_vocab_size()
            largest = max(request.tokens, default=0)
            if largest >= number:
                raise VLLMValidationError(
                    f"tokens must be below {number}; got {largest}", parameter="tokens"
                )
        return await detokenize(self, request, raw_request)
