# SPDX-License-Identifier: Apache-2.0
"""What is in force, said once when a server has started."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from vllm.logger import init_logger

from vllm_lladav.denoising.params import DenoisingParams
from vllm_lladav.denoising.plan import StepPlan
from vllm_lladav.denoising.resolve import resolve
from vllm_lladav.frontend.admission import num_kv_slots
from vllm_lladav.model.families import family_of
from vllm_lladav.options.options import SERVER_OPTIONS, ServerOptions
from vllm_lladav.options.reading import server_of
from vllm_lladav.options.rules import matters

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger(__name__)

TEXT_TOKENS = 64
"""Of the prompt of a request whose number is estimated: a question and the template."""


def log_start(vllm_config: "VllmConfig") -> None:
    """Log what the engine that has started does with a request that asks for nothing.

    In one of the front end's processes.
    """
    if vllm_config.parallel_config._api_process_rank > 0:
        return
    name = family_of(vllm_config.model_config).name
    for line in start_lines(vllm_config):
        logger.info("%s: %s", name, line)


def start_lines(vllm_config: "VllmConfig") -> Iterator[str]:
    """Mode, lengths, and how many requests run at once."""
    server = server_of(vllm_config)
    model_config = vllm_config.model_config
    params = resolve(server, {}, model_config.hf_config.num_hidden_layers)
    flags = " ".join(_flags(server, params))
    yield f"in force: {flags}" if flags else "in force: exact denoising, all defaults"
    yield (
        f"lengths: canvas of {params.gen_length} tokens unless a request asks for "
        f"another, of at most {server.max_gen_length} (--max-gen-length); prompt and "
        f"canvas less than {model_config.max_model_len} (--max-model-len)"
    )
    image = _largest_image(vllm_config)
    yield (
        f"at once: {_num_requests(vllm_config, params, TEXT_TOKENS + image)} requests "
        f"with the largest image ({image} visual tokens), "
        f"{_num_requests(vllm_config, params, TEXT_TOKENS)} without, each with "
        f"{TEXT_TOKENS} tokens of text and the canvas above (--max-num-seqs, "
        "--kv-cache-memory-bytes)"
    )


def _flags(server: ServerOptions, params: DenoisingParams) -> Iterator[str]:
    """Flags that make this engine, the defaults of what they turn on included."""
    followed = _followed(params)
    for name, option in SERVER_OPTIONS.items():
        is_on = option.plugin not in (None, "none") and option.plugin == server.plugin
        value = getattr(server, name)
        if not matters(name, server) or not is_on and value == option.default:
            continue
        if value is None:
            value = followed.get(name, option.default_text)
        yield f"{option.flag} {value}"


def _followed(params: DenoisingParams) -> dict[str, object]:
    """What defaults of pruning that depend on the model or on each other came to."""
    pruning = params.pruning
    if pruning is None:
        return {}
    values = {**asdict(pruning.stages[0]), **asdict(pruning)}
    return {f"prune_{name}": value for name, value in values.items()}


def _num_requests(
    vllm_config: "VllmConfig", params: DenoisingParams, prompt_len: int
) -> int:
    """Requests that the KV cache and ``--max-num-seqs`` let run at the same time, in
    all engines."""
    block_size = vllm_config.cache_config.block_size
    parallel = vllm_config.parallel_config
    num_engines = parallel.data_parallel_size
    if parallel.local_engines_only:
        num_engines = parallel.data_parallel_size_local
    held = StepPlan(params, prompt_len).first.num_held_slots(block_size)
    num_slots = (num_kv_slots(vllm_config) or 0) // num_engines
    num_fitting = num_slots // block_size // -(-held // block_size)
    num_seqs = vllm_config.scheduler_config.max_num_seqs // params.num_sequences
    return num_engines * min(num_fitting, num_seqs)


def _largest_image(vllm_config: "VllmConfig") -> int:
    """In visual tokens."""
    from vllm.multimodal import MULTIMODAL_REGISTRY

    model_config = vllm_config.model_config
    info = MULTIMODAL_REGISTRY.create_processor(model_config).info
    tokens = info.get_mm_max_tokens_per_item(model_config.max_model_len, {"image": 1})
    return tokens["image"] if tokens else 0
