# SPDX-License-Identifier: Apache-2.0
"""The families that are served."""

from typing import TYPE_CHECKING

from vllm_lladav.model.family import Family
from vllm_lladav.model.lladav.family import LLADAV

if TYPE_CHECKING:
    from vllm.config import ModelConfig

FAMILIES: dict[str, Family] = {family.architecture: family for family in (LLADAV,)}
"""Families by architecture, as ``config.json`` names it."""


def is_ours(model_config: "ModelConfig | None") -> bool:
    """Whether a model is of one of the families; vLLM serves all others."""
    return model_config is not None and model_config.architecture in FAMILIES


def family_of(model_config: "ModelConfig") -> Family:
    """The family of a model that :func:`is_ours`."""
    return FAMILIES[model_config.architecture]


def alias_family(model: str) -> Family | None:
    """The family of which a model's name is an alias; None for a hub name or
    directory."""
    for family in FAMILIES.values():
        if model in family.aliases:
            return family
    return None


def is_alias(model: str) -> bool:
    """Whether a model's name is one of ours, not a hub name or directory."""
    return alias_family(model) is not None


def resolve_alias(model: str) -> str:
    """The hub name or directory that an alias stands for; other names as they are."""
    family = alias_family(model)
    return model if family is None else family.aliases[model]()
