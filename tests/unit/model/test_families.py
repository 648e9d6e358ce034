# SPDX-License-Identifier: Apache-2.0
"""A family is a value: a second one needs no change of the engine."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoConfig, PretrainedConfig
from vllm import ModelRegistry, SamplingParams
from vllm.config import ModelConfig, VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.model_executor.models.config import MODELS_CONFIG_MAP

from vllm_lladav.denoising.traits import Traits, traits_of
from vllm_lladav.frontend.admission import check_request
from vllm_lladav.model.families import (
    FAMILIES,
    family_of,
    is_alias,
    is_ours,
    resolve_alias,
)
from vllm_lladav.model.family import Family
from vllm_lladav.model.lladav.family import LLADAV
from vllm_lladav.model.shape import ModelShape
from vllm_lladav.plugin import register

TRAITS = Traits(
    num_tokens=1000,
    mask_token_id=999,
    end_token_id=2,
    banned_token_ids=(),
    image_token_id=None,
    max_prompt_len=512,
)


class OtherConfig(PretrainedConfig):
    """A text model that names its sizes in its own way."""

    model_type = "other_diffusion"
    attribute_map = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
    }

    def __init__(self, d_model: int = 64, n_layers: int = 2, **kwargs: Any) -> None:
        self.d_model, self.n_layers, self.n_heads = d_model, n_layers, 4
        self.vocab_size, self.max_position_embeddings = 1000, 512
        super().__init__(**kwargs)


def _register() -> None:
    AutoConfig.register(OtherConfig.model_type, OtherConfig, exist_ok=True)


def _validate(config: OtherConfig) -> None:
    if config.n_layers < 2:
        raise ValueError(f"Other config: n_layers={config.n_layers}")


def _check_text(text: str) -> None:
    if not text:
        raise VLLMValidationError("an empty prompt", parameter="prompt")


def _shape(config: OtherConfig, vocab_rows: int) -> ModelShape:
    return ModelShape(config.d_model, 128, config.n_layers, 4, 4, 16, vocab_rows)


OTHER = Family(
    name="Other",
    architecture="OtherDiffusionLM",
    model_class="tests.engine.other:OtherDiffusionLM",
    aliases={"other": lambda: "someone/Other"},
    variable="OTHER_MODEL",
    register=_register,
    validate=_validate,
    read_traits=lambda model_config: TRAITS,
    check_text=_check_text,
    shape=_shape,
    picture=lambda config, fields: None,
)


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    FAMILIES[OTHER.architecture] = OTHER
    register()
    yield
    for registry in (FAMILIES, MODELS_CONFIG_MAP, ModelRegistry.models):
        del registry[OTHER.architecture]


@pytest.fixture
def other_checkpoint(tmp_path: Path) -> Path:
    config = {"architectures": [OTHER.architecture], "model_type": "other_diffusion"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_vllm_knows_both():
    for family in (LLADAV, OTHER):
        assert family.architecture in ModelRegistry.get_supported_archs()
    hook = MODELS_CONFIG_MAP[LLADAV.architecture]
    assert MODELS_CONFIG_MAP[OTHER.architecture] is hook


def test_transformers_reads_its_config(other_checkpoint: Path):
    config = AutoConfig.from_pretrained(other_checkpoint)
    assert isinstance(config, OtherConfig)
    assert (config.hidden_size, config.num_hidden_layers) == (64, 2)
    assert OTHER.shape(config, 1024).vision is None


@pytest.mark.parametrize("family", [LLADAV, OTHER], ids=lambda family: family.name)
def test_models_are_recognised(family: Family):
    model_config: Any = SimpleNamespace(architecture=family.architecture)
    assert is_ours(model_config)
    assert family_of(model_config) is family


def test_other_models_are_not():
    llama: Any = SimpleNamespace(architecture="LlamaForCausalLM")
    assert not is_ours(llama)
    assert not is_ours(None)


def test_aliases():
    assert is_alias("other") and is_alias("lladav")
    assert resolve_alias("other") == "someone/Other"
    assert not is_alias("someone/Other")
    assert resolve_alias("someone/Other") == "someone/Other"


@pytest.fixture
def engine_config(monkeypatch: pytest.MonkeyPatch) -> Callable[..., VllmConfig]:
    """Makes vLLM's configuration for a model whose class is not there: that of
    ``lladav-tiny``, told to be the other's."""

    def make(**options: Any) -> VllmConfig:
        config = EngineArgs(
            model="lladav-tiny", dtype="float32", kv_cache_memory_bytes=1 << 28
        ).create_engine_config()
        config.model_config.hf_config = OtherConfig(**options)
        monkeypatch.setattr(ModelConfig, "architecture", OTHER.architecture)
        return config

    return make


def hook(config: VllmConfig) -> None:
    MODELS_CONFIG_MAP[OTHER.architecture].verify_and_update_config(config)


def test_the_engine_is_told_what_the_family_says(engine_config):
    config = engine_config()
    hook(config)
    assert traits_of(config.model_config) == TRAITS
    assert config.model_config.get_diff_sampling_param()["max_tokens"] == 128
    scheduler = config.scheduler_config.get_scheduler_cls()
    assert scheduler.__name__ == "DenoisingScheduler"


def test_its_configs_are_checked(engine_config):
    with pytest.raises(ValueError, match="Other config: n_layers=1"):
        hook(engine_config(n_layers=1))


def test_messages_name_it(engine_config):
    config = engine_config()
    config.model_config.enable_prompt_embeds = True
    with pytest.raises(ValueError, match="^Other cannot be served with prompt emb"):
        hook(config)


def test_prompts_are_checked_by_the_family():
    image_mark = {"type": "token", "prompt": "<image> What is it?"}
    check_request(OTHER, image_mark, SamplingParams())
    with pytest.raises(VLLMValidationError, match="the request has no image"):
        check_request(LLADAV, image_mark, SamplingParams())
    with pytest.raises(VLLMValidationError, match="an empty prompt"):
        check_request(OTHER, {"type": "token", "prompt": ""}, SamplingParams())


def test_families_are_known_without_slow_imports():
    """For ``vllm-lladav --help``."""
    code = (
        "import sys; import vllm_lladav.model.families; "
        "print([m for m in ('torch', 'transformers', 'vllm') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
