# SPDX-License-Identifier: Apache-2.0
"""Requests as a server would resolve them."""

from typing import Any

from vllm import SamplingParams

from vllm_lladav.denoising.params import DenoisingParams, denoising_params
from vllm_lladav.frontend.request import Limits, resolve
from vllm_lladav.options.options import ServerOptions

END = 7
ROOMY = Limits(
    max_prompt_len=1000,
    max_model_len=10_000,
    kv_block_size=16,
    max_num_seqs=8,
    num_kv_slots=None,
    num_layers=4,
)


class Letters:
    """Encodes every letter as its code point."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return ([1] if add_special_tokens else []) + [ord(letter) for letter in text]


def resolved(
    extra: dict[str, Any] | None = None,
    *,
    server: ServerOptions | None = None,
    limits: Limits = ROOMY,
    prompt_len: int = 10,
    **fields: Any,
) -> tuple[DenoisingParams, SamplingParams]:
    params = SamplingParams(
        **{"max_tokens": None, "temperature": 0.0, **fields}, extra_args=extra
    )
    resolve(params, prompt_len, server or ServerOptions(), limits, Letters(), END)
    return denoising_params(params), params
