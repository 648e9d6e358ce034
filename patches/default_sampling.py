# SPDX-License-Identifier: Apache-2.0
"""Official defaults for requests that leave length and temperature open.

Why: without it a chat request that sends no ``max_tokens`` asks for the rest of
the context, and one without ``temperature`` samples at 1.0; the official code
fills a canvas of a set length greedily. A ``max_new_tokens`` in the generation
config would be a server-wide cap instead of a default.
How: wraps ``ModelConfig.get_diff_sampling_param``.
Affects: our models only.
Can go: when vLLM has a per-model default for ``max_tokens`` that is no cap.
"""

from typing import Any

from vllm_lladav.model.families import is_ours
from vllm_lladav.patches.wrapping import wrap


def apply() -> None:
    from vllm.config import ModelConfig

    @wrap(ModelConfig, "get_diff_sampling_param")
    def with_official_defaults(get_params: Any, self: Any) -> dict[str, Any]:
        from vllm_lladav.frontend.request import DefaultMaxTokens

        params = get_params(self)
        if is_ours(self):
            length = DefaultMaxTokens(self.hf_config.default_gen_length)
            params = {"max_tokens": length, "temperature": 0.0, **params}
        return params
