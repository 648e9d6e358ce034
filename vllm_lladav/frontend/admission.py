# SPDX-License-Identifier: Apache-2.0
"""The door: a request is checked against this engine before it is queued."""

from typing import TYPE_CHECKING, Any

from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

from vllm_lladav.denoising.params import CHANNEL_KEY
from vllm_lladav.denoising.traits import Traits, traits_of
from vllm_lladav.frontend.request import Limits, check_supported, resolve
from vllm_lladav.live.asking import take_channel
from vllm_lladav.model.family import Family
from vllm_lladav.options.reading import server_of

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.engine import EngineCoreRequest


def check_request(family: Family, prompt: Any, params: Any) -> None:
    """Refuse what can be refused before vLLM looks at the request.

    Args:
        family: of the model that is asked.
        prompt: vLLM's rendered prompt.
        params: what the client sent.
    """
    if isinstance(params, SamplingParams):
        check_supported(params)
    if isinstance(prompt, dict) and prompt.get("type") == "token":
        family.check_text(prompt.get("prompt") or "")


def resolve_request(
    request: "EngineCoreRequest",
    params: Any,
    vllm_config: "VllmConfig",
    tokenizer: Any,
) -> None:
    """Resolve and check the parameters of a tokenised request, in place.

    ``params`` is what the client sent: vLLM replaces an open ``max_tokens``.
    """
    if request.sampling_params is None:
        return
    if request.prompt_embeds is not None or request.prompt_token_ids is None:
        raise VLLMValidationError(
            "prompt_embeds is not supported: visual tokens come from images",
            parameter="prompt_embeds",
        )
    if request.resumable:
        raise VLLMValidationError(
            "streaming input is not supported by a masked-diffusion model",
            parameter="resumable",
        )
    model_config = vllm_config.model_config
    traits = traits_of(model_config)
    _check_token_ids(request, traits)
    sampling_params = request.sampling_params
    sampling_params.max_tokens = params.max_tokens
    server = server_of(vllm_config)
    channel = take_channel(sampling_params, server)
    resolve(
        sampling_params,
        prompt_len=len(request.prompt_token_ids),
        server=server,
        limits=Limits(
            max_prompt_len=traits.max_prompt_len,
            max_model_len=model_config.max_model_len,
            kv_block_size=vllm_config.cache_config.block_size,
            max_num_seqs=vllm_config.scheduler_config.max_num_seqs,
            num_kv_slots=num_kv_slots(vllm_config),
            num_layers=model_config.hf_config.num_hidden_layers,
        ),
        tokenizer=tokenizer,
        end_token_id=traits.end_token_id,
        has_prompt_masks=traits.mask_token_id in request.prompt_token_ids,
    )
    if channel is not None:
        resolved = sampling_params.extra_args or {}
        sampling_params.extra_args = {**resolved, CHANNEL_KEY: channel}


def _check_token_ids(request: "EngineCoreRequest", traits: Traits) -> None:
    """Ids that cannot be read stand for images and nothing else."""
    assert request.prompt_token_ids is not None
    num_visual = sum(
        feature.mm_position.length for feature in request.mm_features or ()
    )
    num_special = sum(
        token_id >= traits.num_tokens for token_id in request.prompt_token_ids
    )
    if num_special != num_visual:
        raise VLLMValidationError(
            f"prompt token ids must be below {traits.num_tokens}, except "
            f"where an image stands ({num_visual} positions); "
            f"{num_special} are not",
            parameter="prompt_token_ids",
        )


def num_kv_slots(vllm_config: "VllmConfig") -> int | None:
    """Of the whole KV cache; None while it is not known."""
    cache_config = vllm_config.cache_config
    if not cache_config.num_gpu_blocks:
        return None
    # Block 0 is vLLM's null block.
    return (cache_config.num_gpu_blocks - 1) * cache_config.block_size
