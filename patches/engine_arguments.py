# SPDX-License-Identifier: Apache-2.0
"""The plugin's flags and model aliases in ``vllm serve`` and ``LLM``.

Why: vLLM has no hook for flags of a model plugin, nor for model aliases.
How: wraps ``EngineArgs.add_cli_args`` (our argument group), ``from_cli_args``
(its values go into ``additional_config["lladav"]``, and our gate joins
``--middleware``), ``create_engine_config``
and ``arg_utils.get_model_path`` (aliases; the served name stays the alias). Both refuse
a checkpoint that is not there before the hub is asked for it.
``create_engine_config`` is also where chunked prefill and prefix caching, on by
default in vLLM, can still be told from what the user asked for, and where the dtype
``auto`` becomes float32 on CPUs that are slow at any other.
Affects: other models see the flags in ``--help``, and a shorter error where their
directory is not there or has no config.
Can go: when vLLM lets plugins add argument groups.
"""

from typing import Any

from pydantic import ValidationError

from vllm_lladav.model.families import is_alias, is_ours, resolve_alias
from vllm_lladav.model.locating import check_exists, locate
from vllm_lladav.model.start_error import StartError, as_start_error
from vllm_lladav.patches.wrapping import wrap

GATE = "vllm_lladav.server.gate.Gate"


def apply() -> None:
    from vllm.engine import arg_utils
    from vllm.engine.arg_utils import EngineArgs

    from vllm_lladav.options import flags

    @wrap(EngineArgs, "add_cli_args")
    def add_with_ours(add_cli_args: Any, parser: Any) -> Any:
        parser = add_cli_args(parser)
        flags.add_server_flags(parser)
        return parser

    @wrap(EngineArgs, "from_cli_args")
    def from_args_with_ours(from_cli_args: Any, cls: type, args: Any) -> Any:
        engine_args = from_cli_args(cls, args)
        with as_start_error():
            merged = flags.merge_flags(args, engine_args.additional_config)
        # The processes of further API servers get these arguments and read them
        # before they load plugins.
        args.additional_config = engine_args.additional_config = merged
        middleware = getattr(args, "middleware", None)
        if middleware is not None and GATE not in middleware:
            args.middleware = [*middleware, GATE]
        return engine_args

    @wrap(EngineArgs, "create_engine_config")
    def create_with_alias(create: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_alias(self.model):
            self.served_model_name = self.served_model_name or self.model
            if self.tokenizer == self.model:
                self.tokenizer = None
        self.model = _locate(self)
        asked_for = {
            "--enable-chunked-prefill": self.enable_chunked_prefill,
            "--enable-prefix-caching": self.enable_prefix_caching,
        }
        try:
            if self.dtype == "auto" and _is_slow_at_bfloat16(self):
                self.dtype = "float32"
            config = create(self, *args, **kwargs)
        except ValidationError as error:
            raise _refusal(error) or error from None
        if is_ours(config.model_config):
            with as_start_error():
                flags.refuse_flags(asked_for)
        return config

    @wrap(arg_utils, "get_model_path")
    def get_path_of_alias(
        get_model_path: Any, model: Any, revision: str | None = None
    ) -> Any:
        if is_alias(model):
            return model  # resolved in create_engine_config
        check_exists(str(model))
        return get_model_path(model, revision)


def _locate(engine_args: Any) -> str:
    from vllm import envs

    if engine_args.hf_config_path is not None or envs.VLLM_USE_MODELSCOPE:
        return resolve_alias(engine_args.model)
    return locate(engine_args.model, engine_args.revision, engine_args.hf_token)


def _refusal(error: ValidationError) -> StartError | None:
    """The first of ours among the errors of a configuration, without pydantic's words
    around it."""
    causes = [detail.get("ctx", {}).get("error") for detail in error.errors()]
    return next((cause for cause in causes if isinstance(cause, StartError)), None)


def _is_slow_at_bfloat16(engine_args: Any) -> bool:
    """Whether one of our models would run on a CPU that converts every product."""
    from vllm.platforms import current_platform

    from vllm_lladav.frontend.cpu_dtype import computes_bfloat16

    return (
        current_platform.is_cpu()
        and not computes_bfloat16()
        and is_ours(engine_args.create_model_config())
    )
