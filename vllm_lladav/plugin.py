# SPDX-License-Identifier: Apache-2.0
"""The plugin's entry point (``vllm.general_plugins``)."""

import logging


def register() -> None:
    """Make vLLM know our model families. Called in every process; a second call is
    harmless."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from vllm_lladav.frontend.vllm_config import DenoisingVllmConfig
    from vllm_lladav.model.families import FAMILIES
    from vllm_lladav.patches import apply_all

    for family in FAMILIES.values():
        family.register()
        ModelRegistry.register_model(family.architecture, family.model_class)
        MODELS_CONFIG_MAP[family.architecture] = DenoisingVllmConfig
    apply_all()
    # vLLM gives its own loggers a handler and a level, and no others.
    logging.getLogger("vllm_lladav").parent = logging.getLogger("vllm")
