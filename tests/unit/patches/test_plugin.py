# SPDX-License-Identifier: Apache-2.0
"""``register()`` can be called again, and other models do not notice it."""

import inspect
import json
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import zmq
from fastapi._compat import ModelField
from huggingface_hub import constants
from starlette.requests import Request
from vllm import ModelRegistry, envs, tokenizers
from vllm.config import ModelConfig, VllmConfig
from vllm.distributed.device_communicators.shm_broadcast import SpinCondition
from vllm.engine import arg_utils
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.cli import serve as serve_command
from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin
from vllm.entrypoints.launchers import app as launcher
from vllm.entrypoints.launchers.api_server import entry
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
from vllm.entrypoints.serve.exception_handling import error_response
from vllm.entrypoints.serve.exception_handling.handlers import http, validation
from vllm.entrypoints.serve.tokenize.serving import ServingTokenization
from vllm.exceptions import VLLMValidationError
from vllm.model_executor.models.config import MODELS_CONFIG_MAP
from vllm.multimodal.media.connector import MediaConnector
from vllm.platforms import current_platform
from vllm.renderers import hf
from vllm.utils.network_utils import get_open_zmq_ipc_path
from vllm.v1.engine import utils as engine_utils
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core import EngineCore
from vllm.v1.engine.input_processor import InputProcessor
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.executor.abstract import Executor
from vllm.v1.metrics.loggers import LoggingStatLogger, PrometheusStatLogger
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.utils import APIServerProcessManager
from vllm.v1.worker.gpu.block_table import BlockTables
from vllm.v1.worker.gpu_worker import Worker
from vllm.v1.worker.worker_base import WorkerWrapperBase

from vllm_lladav.model.families import is_ours
from vllm_lladav.model.lladav.family import LLADAV
from vllm_lladav.model.start_error import StartError
from vllm_lladav.patches import apply_for_worker
from vllm_lladav.patches.cpu_waiting import RECENTLY_S
from vllm_lladav.plugin import register

WRAPPED: list[tuple[Any, str]] = [
    (EngineArgs, "add_cli_args"),
    (EngineArgs, "from_cli_args"),
    (EngineArgs, "create_engine_config"),
    (arg_utils, "get_model_path"),
    (tokenizers, "get_tokenizer"),
    (hf, "resolve_chat_template"),
    (MediaConnector, "load_from_url"),
    (MediaConnector, "load_from_url_async"),
    (Request, "json"),
    (ModelField, "validate"),
    (error_response, "sanitize_message"),
    (http, "sanitize_message"),
    (validation, "sanitize_message"),
    (launcher, "init_exception_handler"),
    (ServingTokenization, "create_detokenize"),
    (OpenAIServingResponses, "_generate_with_builtin_tools"),
    (InputProcessor, "process_inputs"),
    (AsyncLLM, "generate"),
    (AsyncLLM, "shutdown"),
    (AsyncLLM, "check_admission"),
    (AsyncLLM, "abort"),
    (OutputProcessor, "abort_requests"),
    (OutputProcessor, "process_outputs"),
    (OpenAIServingChat, "_create_chat_completion"),
    (entry, "build_and_serve"),
    (serve_command, "launch_core_engines"),
    (serve_command.ServeSubcommand, "cmd"),
    (APIServerProcessManager, "shutdown"),
    (engine_utils.CoreEngineProcManager, "__init__"),
    (engine_utils.CoreEngineProcManager, "shutdown"),
    (engine_utils, "wait_for_engine_startup"),
    (EngineCore, "_initialize_kv_caches"),
    (Worker, "load_model"),
    (Executor, "__init__"),
    (WorkerWrapperBase, "init_device"),
    (OpenAIServingResponses, "create_responses"),
    (BeamSearchOnlineMixin, "beam_search"),
    (ModelConfig, "get_diff_sampling_param"),
    (LoggingStatLogger, "__init__"),
    (PrometheusStatLogger, "__init__"),
]
REPLACED: list[tuple[Any, str]] = [(SchedulerStats, "__annotations__")]
if current_platform.is_cpu():
    WRAPPED += [(VllmConfig, "_get_v2_model_runner_unsupported_features")]
    REPLACED += [
        (BlockTables, "gather_block_tables"),
        (BlockTables, "compute_slot_mappings"),
    ]
OPTIONS: dict[str, Any] = {"dtype": "float32", "kv_cache_memory_bytes": 1 << 28}


@pytest.fixture(scope="module", autouse=True)
def _registered() -> None:
    register()
    apply_for_worker()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of another model."""
    directory = tmp_path_factory.mktemp("llama")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 1000,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_a_second_call_changes_nothing():
    before = [vars(owner)[name] for owner, name in WRAPPED + REPLACED]
    declared = dict(SchedulerStats.__annotations__)
    config_hook = MODELS_CONFIG_MAP[LLADAV.architecture]
    register()
    apply_for_worker()
    for (owner, name), old in zip(WRAPPED + REPLACED, before, strict=True):
        assert vars(owner)[name] is old, name
    assert SchedulerStats.__annotations__ == declared
    assert MODELS_CONFIG_MAP[LLADAV.architecture] is config_hook


@pytest.mark.parametrize(("owner", "name"), WRAPPED, ids=[name for _, name in WRAPPED])
def test_patches_wrap_once(owner: Any, name: str):
    """Right below our wrapper is vLLM's own function."""
    patched = vars(owner)[name]
    wrapper = getattr(patched, "__func__", patched)
    assert "patches" in Path(wrapper.__code__.co_filename).parts
    original = wrapper.__wrapped__
    original = getattr(original, "__func__", original)
    assert "patches" not in Path(original.__code__.co_filename).parts


cpu_without_spinning = pytest.mark.skipif(
    not current_platform.is_cpu() or envs.VLLM_CPU_NUM_OF_RESERVED_CPU != 0,
    reason="vLLM's own waiting",
)


@contextmanager
def closing_sockets(condition: SpinCondition) -> Iterator[None]:
    """vLLM leaves its sockets to the end of the process."""
    yield
    for value in vars(condition).values():
        if isinstance(value, zmq.Socket):
            value.close(linger=0)


class Watched:
    """A poller that says how long it was to wait, in milliseconds."""

    def __init__(self, poller: zmq.Poller) -> None:
        self.poll_once = poller.poll
        self.timeouts: list[int | None] = []

    def poll(self, timeout: int | None) -> Any:
        self.timeouts.append(timeout)
        return self.poll_once(timeout)


@pytest.mark.skipif(not current_platform.is_cpu(), reason="spins on a GPU machine")
def test_spins_on_reserved_cores_only():
    spins = envs.VLLM_CPU_NUM_OF_RESERVED_CPU != 0
    signature = inspect.signature(SpinCondition)
    assert bool(signature.parameters["busy_loop_s"].default) == spins


@cpu_without_spinning
@pytest.mark.parametrize(("asked_for", "most"), [(None, 100), (5000, 100), (1, 1)])
def test_a_lost_wake_up_is_made_good(asked_for: int | None, most: int):
    """Waiting ends after a while, and its callers look at the buffer again."""
    with zmq.Context() as context:
        reader: Any = SpinCondition(True, context, get_open_zmq_ipc_path())
        with closing_sockets(reader):
            watched = reader.poller = Watched(reader.poller)
            reader.last_read -= RECENTLY_S
            reader.wait(asked_for)
            reader.record_read()
            reader.last_read -= 0.1  # Not in the same instant: no spinning.
            reader.wait(asked_for)
    assert watched.timeouts == [most, min(most, 2)]


@cpu_without_spinning
def test_a_wake_up_is_taken():
    with zmq.Context() as context:
        address = get_open_zmq_ipc_path()
        writer = SpinCondition(False, context, address)
        reader = SpinCondition(True, context, address)
        with closing_sockets(writer), closing_sockets(reader):
            reader.last_read -= RECENTLY_S
            # A subscription takes a moment to reach the writer.
            while not reader.poller.poll(10):
                writer.notify()
            reader.wait(None)
            assert reader.poller.poll(0) == []


def test_model_is_known():
    assert LLADAV.architecture in ModelRegistry.get_supported_archs()


def test_lladav_configuration(tiny_checkpoint: Path):
    """A denoising scheduler on Model Runner V2, whole prompts, official defaults."""
    config = EngineArgs(model=str(tiny_checkpoint), **OPTIONS).create_engine_config()
    scheduler = config.scheduler_config
    assert config.use_v2_model_runner
    assert scheduler.get_scheduler_cls().__name__ == "DenoisingScheduler"
    assert not scheduler.enable_chunked_prefill
    assert not config.cache_config.enable_prefix_caching
    assert scheduler.max_num_batched_tokens >= config.model_config.max_model_len
    defaults = config.model_config.get_diff_sampling_param()
    assert defaults == {"max_tokens": 128, "temperature": 0.0}


def test_alias(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    """The served name stays the alias; the server's length is the default."""
    monkeypatch.setenv("VLLM_LLADAV_MODEL", str(tiny_checkpoint))
    config = EngineArgs(
        model="lladav", additional_config={"lladav": {"gen_length": 64}}, **OPTIONS
    ).create_engine_config()
    assert config.model_config.model == str(tiny_checkpoint)
    assert config.model_config.tokenizer == str(tiny_checkpoint)
    assert config.model_config.served_model_name == "lladav"
    assert config.model_config.get_diff_sampling_param()["max_tokens"] == 64


def test_alias_of_a_cached_checkpoint(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """The local cache of the hub is enough where the hub may not be asked."""
    assert constants.HF_HUB_OFFLINE
    monkeypatch.delenv("VLLM_LLADAV_MODEL", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--GSAI-ML--LLaDA-V"
    snapshot = repository / "snapshots" / "0123456789"
    shutil.copytree(tiny_checkpoint, snapshot)
    # As in the official checkpoint: no directory beside the config.
    values = json.loads((snapshot / "config.json").read_text())
    values["mm_vision_tower"] = "google/siglip2-so400m-patch14-384"
    values["mm_hidden_size"] = 1152
    (snapshot / "config.json").write_text(json.dumps(values))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    config = EngineArgs(model="lladav", **OPTIONS).create_engine_config()
    assert config.model_config.served_model_name == "lladav"
    assert is_ours(config.model_config)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"enable_prefix_caching": True}, "--enable-prefix-caching"),
        ({"enable_chunked_prefill": True}, "--enable-chunked-prefill"),
        ({"pipeline_parallel_size": 2}, "--pipeline-parallel-size"),
        ({"enable_lora": True}, "--enable-lora"),
        ({"enable_prompt_embeds": True}, "--enable-prompt-embeds"),
        ({"logits_processors": ["a:b"]}, "--logits-processors"),
        ({"runner": "pooling"}, "--runner pooling"),
        ({"quantization": "fp8"}, "(--quantization fp8)"),
        ({"quantization": "awq"}, "(--quantization awq)"),
        ({"quantization": "fp_quant"}, "(--quantization fp_quant)"),
        (
            {"quantization_config": {"linear": {"weight": "mxfp8"}}},
            "--quantization-config",
        ),
        (
            {"hf_overrides": {"quantization_config": {"quant_method": "fp8"}}},
            "a quantized checkpoint (quantization_config in config.json)",
        ),
        ({"kv_cache_dtype": "nvfp4"}, "LLaDA-V cannot be served with --kv-cache-dtype"),
        ({"kv_cache_dtype_skip_layers": ["0"]}, "--kv-cache-dtype-skip-layers"),
        (
            {
                "speculative_config": {
                    "method": "ngram",
                    "num_speculative_tokens": 2,
                    "prompt_lookup_max": 3,
                }
            },
            "--speculative-config",
        ),
        (
            {"additional_config": {"lladav": {"gen_lenght": 3}}},
            "gen_lenght; known are",
        ),
    ],
    ids=str,
)
def test_unsupported_options_are_refused_at_start(
    tiny_checkpoint: Path, options: dict[str, Any], words: str
):
    with pytest.raises(StartError) as error:
        EngineArgs(
            model=str(tiny_checkpoint), **OPTIONS, **options
        ).create_engine_config()
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not current_platform.is_cpu(), reason="about CPUs")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="vLLM decides")
@pytest.mark.parametrize(
    ("has_products", "asked_for", "expected"),
    [
        (False, "auto", torch.float32),
        (True, "auto", torch.bfloat16),
        (False, "bfloat16", torch.bfloat16),
    ],
)
def test_dtype_is_one_that_the_cpu_computes(
    monkeypatch: pytest.MonkeyPatch,
    has_products: bool,
    asked_for: Any,
    expected: torch.dtype,
):
    """`lladav-tiny` is stored in bfloat16. What the user names is left alone."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_products)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    options = {**OPTIONS, "dtype": asked_for}
    config = EngineArgs(model="lladav-tiny", **options).create_engine_config()
    assert config.model_config.dtype == expected


# ----------------------------------------------------------------- other models
def test_configuration_of_another_model_is_left_alone(llama: Path):
    """Its scheduler, runner, prefix caching, chunked prefill and sampling defaults
    are what vLLM chooses."""
    config = EngineArgs(
        model=str(llama),
        skip_tokenizer_init=True,
        enable_prefix_caching=True,
        enable_chunked_prefill=True,
        **OPTIONS,
    ).create_engine_config()
    assert config.scheduler_config.scheduler_cls is None
    assert config.scheduler_config.enable_chunked_prefill
    assert config.cache_config.enable_prefix_caching
    assert not config.use_v2_model_runner
    assert config.model_config.get_diff_sampling_param() == {}
    assert config.additional_config == {}


def test_requests_to_another_model_are_not_checked():
    """They go straight to vLLM's own function, with all arguments."""
    processor: Any = SimpleNamespace(
        model_config=SimpleNamespace(architecture="LlamaForCausalLM"),
        _validate_params=lambda *args: (_ for _ in ()).throw(LookupError(args)),
    )
    arguments: list[Any] = ["id", "<image>", "params", ("tasks",)]
    with pytest.raises(LookupError) as error:
        InputProcessor.process_inputs(processor, *arguments)
    assert error.value.args == (("params", ("tasks",)),)


def test_tools_are_refused_for_lladav_only():
    tokenizer: Any = SimpleNamespace(get_chat_template=lambda template, tools: template)

    def resolve(architecture: str, tools: Any) -> Any:
        model_config: Any = SimpleNamespace(architecture=architecture)
        return hf.resolve_chat_template(
            tokenizer, "{{ messages }}", tools, model_config=model_config
        )

    tools = [{"type": "function", "function": {"name": "f"}}]
    assert resolve("LlamaForCausalLM", tools) == "{{ messages }}"
    assert resolve(LLADAV.architecture, None) == "{{ messages }}"
    with pytest.raises(VLLMValidationError, match="tools is not supported"):
        resolve(LLADAV.architecture, tools)
