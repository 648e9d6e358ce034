# SPDX-License-Identifier: Apache-2.0
"""Official defaults for requests that leave length and temperature open.

Why: without it a chat request that sends no ``max_tokens`` asks for the rest of
the context, and one without ``temperature`` samples at 1.0; the official code
fills a canvas of a set length greedily. A ``max_new_tokens`` in the generation
config would be a server-wide cap instead of a default.
How: wraps ``ModelConfig.get_diff_sampling_param``.
Affects: LLaDA-V only.
Can go: when vLLM has a per-model default for ``max_tokens`` that is no cap.
"""

import functools
from typing import Any


def apply() -> None:
    from vllm.config import ModelConfig

    from vllm_lladav.model.lladav.config import ARCHITECTURE

    get_diff_sampling_param = ModelConfig.get_diff_sampling_param
    if hasattr(get_diff_sampling_param, "lladav"):
        return

    @functools.wraps(get_diff_sampling_param)
    def with_official_defaults(self: Any) -> dict[str, Any]:
        from vllm_lladav.frontend.request import DefaultMaxTokens

        params = get_diff_sampling_param(self)
        if self.architecture == ARCHITECTURE:
            length = DefaultMaxTokens(self.hf_config.default_gen_length)
            params = {"max_tokens": length, "temperature": 0.0, **params}
        return params

    with_official_defaults.lladav = True  # type: ignore[attr-defined]
    ModelConfig.get_diff_sampling_param = with_official_defaults
