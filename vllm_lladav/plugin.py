# SPDX-License-Identifier: Apache-2.0
"""The plugin's entry point (``vllm.general_plugins``)."""

MODEL_CLASS = "vllm_lladav.model.lladav.model:LlavaLLaDAModelLM"


def register() -> None:
    """Make vLLM know LLaDA-V. Called in every process; a second call is harmless."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from vllm_lladav.frontend.vllm_config import LladavVllmConfig
    from vllm_lladav.model.lladav.config import ARCHITECTURE, register_config
    from vllm_lladav.model.lladav.prompt import register_chat_template
    from vllm_lladav.patches import apply_all

    register_config()
    register_chat_template()
    ModelRegistry.register_model(
        ARCHITECTURE, "vllm_lladav.model.lladav.model:LlavaLLaDAModelLM"
    )
    MODELS_CONFIG_MAP[ARCHITECTURE] = LladavVllmConfig
    apply_all()
