# SPDX-License-Identifier: Apache-2.0
"""What vLLM's configuration must be for our models, set once at start."""

from typing import TYPE_CHECKING

import torch
from vllm import envs
from vllm.model_executor.models.config import VerifyAndUpdateConfig

from vllm_lladav.denoising.resolve import check_depth
from vllm_lladav.denoising.traits import keep_traits
from vllm_lladav.denoising.whole_graphs import keep_graph_rows
from vllm_lladav.frontend import kv_cache
from vllm_lladav.frontend.media_rules import keep_media_rules
from vllm_lladav.frontend.quiet_log import quiet_log
from vllm_lladav.model.families import family_of
from vllm_lladav.model.family import Family
from vllm_lladav.model.start_error import StartError, as_start_error
from vllm_lladav.options.options import ServerOptions
from vllm_lladav.options.reading import server_of

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig

GRAPH_SIZES = (16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""Rows of the CUDA graphs that cached steps run in. A step has whole blocks of its
requests; with more rows it is expected to take a GPU longer than its launch."""

CPU_KV_BLOCK = 128
"""Tokens of vLLM's KV blocks on a CPU, by default."""

QUEUE_FACTOR = 8
"""Requests in a server, running and waiting, for each that can run, by default. One
more is a 503: it would wait for seven generations of others."""

SCHEDULER = "vllm_lladav.scheduler.scheduler.DenoisingScheduler"
ONE_PROCESS = "vllm_lladav.worker.one_process.OneProcess"


class DenoisingVllmConfig(VerifyAndUpdateConfig):
    """Hook of ``MODELS_CONFIG_MAP``, called in the front end."""

    @staticmethod
    def verify_and_update_model_config(model_config: "ModelConfig") -> None:
        """Refuse quantization, before vLLM looks at what can be quantized how.

        Raises:
            StartError: naming how it was asked for.
        """
        asked = None
        if getattr(model_config.hf_config, "quantization_config", None) is not None:
            asked = "a quantized checkpoint (quantization_config in config.json)"
        elif model_config.quantization is not None:
            asked = f"quantization (--quantization {model_config.quantization})"
        elif model_config.quantization_config is not None:
            asked = "quantization (--quantization-config)"
        if asked is not None:
            name = family_of(model_config).name
            raise StartError(f"{name} cannot be served with {asked}")

    @staticmethod
    def verify_and_update_config(vllm_config: "VllmConfig") -> None:
        """Check the model and the server options, and adapt vLLM to denoising.

        Raises:
            StartError: naming what this model cannot be served with.
        """
        quiet_log()
        model_config = vllm_config.model_config
        family = family_of(model_config)
        with as_start_error():
            family.validate(model_config.hf_config)
            server = server_of(vllm_config)
            check_depth(server, model_config.hf_config.num_hidden_layers)
            _refuse_unsupported(vllm_config, family)
            keep_traits(model_config, family.read_traits(model_config))
        keep_media_rules(model_config, server)
        # For patches/default_sampling.py, which is given no more than this.
        model_config.hf_config.default_gen_length = server.gen_length
        _adapt_scheduling(vllm_config)
        _adapt_execution(vllm_config, server)


def _refuse_unsupported(vllm_config: "VllmConfig", family: Family) -> None:
    parallel = vllm_config.parallel_config
    model = vllm_config.model_config
    unsupported = {
        "pipeline parallelism (--pipeline-parallel-size)": (
            parallel.pipeline_parallel_size > 1
        ),
        "context parallelism": (
            parallel.decode_context_parallel_size > 1
            or parallel.prefill_context_parallel_size > 1
        ),
        "speculative decoding (--speculative-config)": (
            vllm_config.speculative_config is not None
        ),
        "LoRA (--enable-lora)": vllm_config.lora_config is not None,
        "KV transfer (--kv-transfer-config)": (
            vllm_config.kv_transfer_config is not None
        ),
        "encoder transfer (--ec-transfer-config)": (
            vllm_config.ec_transfer_config is not None
        ),
        "watermarking (--watermark-config)": vllm_config.watermark_config is not None,
        "prompt embeddings (--enable-prompt-embeds)": model.enable_prompt_embeds,
        "K/V of several types (--kv-cache-dtype-skip-layers)": bool(
            vllm_config.cache_config.kv_cache_dtype_skip_layers
        ),
        "custom logits processors (--logits-processors)": bool(model.logits_processors),
        "Model Runner V1 (VLLM_USE_V2_MODEL_RUNNER=0)": (
            not vllm_config.use_v2_model_runner
        ),
        "VLLM_RAISE_ON_LOGIT_NANS and --live-canvas on, which share a field": (
            envs.VLLM_RAISE_ON_LOGIT_NANS and server_of(vllm_config).live_canvas == "on"
        ),
        "pooling (--runner pooling)": model.runner_type == "pooling",
    }
    asked = [name for name, is_asked in unsupported.items() if is_asked]
    assert isinstance(model.dtype, torch.dtype), model.dtype
    of_cache = kv_cache.refusal(
        vllm_config.cache_config.cache_dtype, model.dtype, model.get_head_size()
    )
    if of_cache is not None:
        asked.append(of_cache)
    if asked:
        raise ValueError(f"{family.name} cannot be served with {', '.join(asked)}")


def _adapt_scheduling(vllm_config: "VllmConfig") -> None:
    scheduler = vllm_config.scheduler_config
    scheduler.scheduler_cls = SCHEDULER
    scheduler.enable_chunked_prefill = False
    vllm_config.cache_config.enable_prefix_caching = False
    # A step runs the whole prompt and canvas, and all images of a request.
    least = vllm_config.model_config.max_model_len
    scheduler.max_num_batched_tokens = max(scheduler.max_num_batched_tokens, least)
    scheduler.max_num_encoder_input_tokens = max(
        scheduler.max_num_encoder_input_tokens, least
    )
    scheduler.encoder_cache_size = max(scheduler.encoder_cache_size, least)
    if scheduler.max_num_queued_reqs is None:
        ranks = vllm_config.parallel_config.data_parallel_size
        scheduler.max_num_queued_reqs = QUEUE_FACTOR * scheduler.max_num_seqs * ranks


def _adapt_execution(vllm_config: "VllmConfig", server: ServerOptions) -> None:
    from vllm.config import CompilationMode, CUDAGraphMode
    from vllm.platforms import current_platform

    compilation = vllm_config.compilation_config
    if current_platform.is_cpu():
        # Steps are bound by matrix products; compiling only delays the start.
        compilation.mode = CompilationMode.NONE
        parallel = vllm_config.parallel_config
        if (
            parallel.distributed_executor_backend == "uni"
            and envs.VLLM_ENABLE_V1_MULTIPROCESSING
        ):
            # vLLM would make it "mp".
            parallel.distributed_executor_backend = ONE_PROCESS
        _size_cpu_kv_cache(vllm_config)
    else:
        vllm_config.attention_config.use_non_causal = True
        # The forward pass leaves its hidden states with the step, in Python, so that no
        # graph of vLLM's can hold all of it; worker/step_graphs.py has ours, for who
        # asks. vLLM's own default, which asks, is filled in later.
        asked = compilation.cudagraph_mode
        if asked is not None and asked.has_full_cudagraphs():
            rows = min(server.block_length, server.gen_length)
            if server.cache == "prompt":
                rows = server.gen_length
            keep_graph_rows(vllm_config.model_config, rows)
        if asked != CUDAGraphMode.NONE:
            compilation.cudagraph_mode = CUDAGraphMode.PIECEWISE
        is_sized = compilation.max_cudagraph_capture_size is not None
        if compilation.cudagraph_capture_sizes is None and not is_sized:
            most = vllm_config.scheduler_config.max_num_seqs * server.block_length
            sizes = [size for size in GRAPH_SIZES if size <= most]
            compilation.cudagraph_capture_sizes = sizes or [most]


def _size_cpu_kv_cache(vllm_config: "VllmConfig") -> None:
    """A KV cache for twice the tokens of a step, unless the user sized it.

    vLLM would take 92% of the machine's memory, and not start where that much is
    not free, for requests that the token budget does not let run at once.
    """
    from vllm.config import CacheConfig
    from vllm.utils.torch_utils import kv_cache_dtype_str_to_dtype

    cache = vllm_config.cache_config
    is_sized = cache.gpu_memory_utilization != CacheConfig.gpu_memory_utilization
    if cache.kv_cache_memory_bytes is not None or is_sized:
        return
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    dtype = kv_cache_dtype_str_to_dtype(cache.cache_dtype, model)
    per_layer = 2 * model.get_num_kv_heads(parallel) * model.get_head_size()
    bytes_per_token = model.get_num_layers(parallel) * per_layer * dtype.itemsize
    num_tokens = 2 * vllm_config.scheduler_config.max_num_batched_tokens
    # vLLM's null block, and what the last block of a request leaves free.
    num_tokens += 2 * CPU_KV_BLOCK
    cache.kv_cache_memory_bytes = num_tokens * bytes_per_token
