# SPDX-License-Identifier: Apache-2.0
"""The plugin's flags and model aliases in ``vllm serve`` and ``LLM``.

Why: vLLM has no hook for flags of a model plugin, nor for model aliases.
How: wraps ``EngineArgs.add_cli_args`` (our argument group), ``from_cli_args``
(its values go into ``additional_config["lladav"]``), ``create_engine_config``
and ``arg_utils.get_model_path`` (aliases; the served name stays the alias).
``create_engine_config`` is also where chunked prefill and prefix caching, on by
default in vLLM, can still be told from what the user asked for, and where the dtype
``auto`` becomes float32 on CPUs that are slow at any other.
Affects: other models see the flags in ``--help`` and nothing else.
Can go: when vLLM lets plugins add argument groups.
"""

import functools
from typing import Any


def apply() -> None:
    from vllm.engine import arg_utils
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform

    from vllm_lladav.frontend.cpu_dtype import computes_bfloat16
    from vllm_lladav.model.aliases import MODEL_ALIASES, resolve_alias
    from vllm_lladav.model.lladav.config import ARCHITECTURE
    from vllm_lladav.options import flags

    if hasattr(EngineArgs.create_engine_config, "lladav"):
        return
    add_cli_args = EngineArgs.add_cli_args
    from_cli_args: Any = vars(EngineArgs)["from_cli_args"].__func__
    create_engine_config = EngineArgs.create_engine_config
    get_model_path = arg_utils.get_model_path

    @functools.wraps(add_cli_args)
    def add_with_ours(parser: Any) -> Any:
        parser = add_cli_args(parser)
        flags.add_server_flags(parser)
        return parser

    @functools.wraps(from_cli_args)
    def from_args_with_ours(cls: type, args: Any) -> Any:
        engine_args = from_cli_args(cls, args)
        merged = flags.merge_flags(args, engine_args.additional_config)
        # The processes of further API servers get these arguments and read them
        # before they load plugins.
        args.additional_config = engine_args.additional_config = merged
        return engine_args

    @functools.wraps(create_engine_config)
    def create_with_alias(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.model in MODEL_ALIASES:
            self.served_model_name = self.served_model_name or self.model
            if self.tokenizer == self.model:
                self.tokenizer = None
            self.model = resolve_alias(self.model)
        if (
            self.dtype == "auto"
            and current_platform.is_cpu()
            and not computes_bfloat16()
            and self.create_model_config().architecture == ARCHITECTURE
        ):
            self.dtype = "float32"
        asked_for = {
            "--enable-chunked-prefill": self.enable_chunked_prefill,
            "--enable-prefix-caching": self.enable_prefix_caching,
        }
        config = create_engine_config(self, *args, **kwargs)
        if config.model_config.architecture == ARCHITECTURE:
            flags.refuse_flags(asked_for)
        return config

    @functools.wraps(get_model_path)
    def get_path_of_alias(model: Any, revision: str | None = None) -> Any:
        if model in MODEL_ALIASES:
            return model  # resolved in create_engine_config
        return get_model_path(model, revision)

    create_with_alias.lladav = True  # type: ignore[attr-defined]
    EngineArgs.add_cli_args = staticmethod(add_with_ours)
    EngineArgs.from_cli_args = classmethod(  # type: ignore[assignment]
        from_args_with_ours
    )
    EngineArgs.create_engine_config = create_with_alias
    arg_utils.get_model_path = get_path_of_alias
