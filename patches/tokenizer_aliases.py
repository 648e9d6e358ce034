# SPDX-License-Identifier: Apache-2.0
"""Our model names are names of tokenizers, too.

Why: ``vllm bench serve`` loads the tokenizer by the name of the model that the server
tells, and asks the hub for ``lladav-tiny``.
How: wraps ``vllm.tokenizers.get_tokenizer``, from where vLLM's benchmarks import it.
Affects: names that are ours.
Can go: when vLLM lets plugins add model aliases.
"""

from typing import Any

from vllm_lladav.model.families import resolve_alias
from vllm_lladav.patches.wrapping import wrap


def apply() -> None:
    from vllm import tokenizers

    @wrap(tokenizers, "get_tokenizer")
    def get_by_alias(
        get_tokenizer: Any, tokenizer_name: Any, *args: Any, **kwargs: Any
    ) -> Any:
        return get_tokenizer(resolve_alias(str(tokenizer_name)), *args, **kwargs)
