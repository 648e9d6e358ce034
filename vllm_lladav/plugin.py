# SPDX-License-Identifier: Apache-2.0
"""The plugin's entry point (``vllm.general_plugins``)."""

MODEL_CLASS = "vllm_lladav.model.lladav:LlavaLLaDAModelLM"


def register() -> None:
    """Make vLLM know LLaDA-V. Called in every process; a second call is harmless."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from vllm_lladav.engine.vllm_config import LladavVllmConfig
    from vllm_lladav.model.config import ARCHITECTURE, register_config
    from vllm_lladav.model.prompt import register_chat_template
    from vllm_lladav.patches import apply_all

    register_config()
    register_chat_template()
    ModelRegistry.register_model(
        ARCHITECTURE, "vllm_lladav.model.lladav:LlavaLLaDAModelLM"
    )
    MODELS_CONFIG_MAP[ARCHITECTURE] = LladavVllmConfig
    apply_all()
