# SPDX-License-Identifier: Apache-2.0
"""Where a checkpoint is. One that is not there is refused before vLLM looks for it.

vLLM asks the hub for whatever is no directory, again and again where the hub cannot be
reached, and ends in errors that know nothing of our names.
"""

import json
from pathlib import Path
from typing import Any

from vllm_lladav.model.families import alias_family
from vllm_lladav.model.family import Family
from vllm_lladav.model.start_error import StartError

HUB_SECONDS = 10.0
"""For the hub to say whether it has a checkpoint."""

CONFIG = "config.json"
CONFIGS = (CONFIG, "params.json")
"""What vLLM reads; the second is Mistral's."""


def locate(
    model: str, revision: str | None = None, token: bool | str | None = None
) -> str:
    """The directory or hub name that a model's name stands for.

    Args:
        model: as the user gave it.
        revision: of a hub name.
        token: for the hub.

    Raises:
        StartError: if one of our names stands for what is no checkpoint of its family,
            or any other for a directory that is not there or has no config. What may
            be a hub name is left to vLLM.
    """
    family = alias_family(model)
    if family is None:
        check_exists(model)
        path = Path(model)
        if path.is_dir() and not any((path / name).is_file() for name in CONFIGS):
            raise StartError(f"{model}: no checkpoint, there is no {CONFIG} in it")
        return model
    name = family.aliases[model]()
    try:
        _check_family(_config(name, revision, token), family)
    except (OSError, ValueError) as error:
        raise StartError(
            f"{model} stands for {name}: {error}. Name a directory with a "
            f"{family.name} checkpoint in its place, or set {family.variable} to one"
        ) from None
    return name


def check_exists(name: str) -> None:
    """
    Raises:
        StartError: if a name can only mean a directory or file, which is not there.
    """
    if name.startswith(("/", ".", "~")) and not Path(name).exists():
        raise StartError(f"{name}: there is no such file or directory")


def _config(name: str, revision: str | None, token: bool | str | None) -> Any:
    directory = Path(name)
    if directory.is_dir():
        file = directory / CONFIG
        if not file.is_file():
            raise ValueError(f"there is no {CONFIG} in that directory")
    else:
        file = _file_of_hub(name, revision, token)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"its {CONFIG} is no JSON ({error})") from None


def _file_of_hub(name: str, revision: str | None, token: bool | str | None) -> Path:
    """The config, from the local cache if it is there."""
    from huggingface_hub import (
        constants,
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
        try_to_load_from_cache,
    )
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, CONFIG, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
        if constants.HF_HUB_OFFLINE:
            raise ValueError(
                "there is no such directory, the local cache of the Hugging Face hub "
                "does not have it, and HF_HUB_OFFLINE is set"
            )
        # A download would try again for half a minute.
        url = hf_hub_url(name, CONFIG, revision=revision)
        get_hf_file_metadata(url, token=token, timeout=HUB_SECONDS)
        return Path(hf_hub_download(name, CONFIG, revision=revision, token=token))
    except HFValidationError:
        raise ValueError("there is no such directory") from None
    except ValueError:
        raise
    except Exception as error:  # The hub's HTTP client has its own, and changes.
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            "there is no such directory, and the Hugging Face hub does not have it or "
            f"cannot be reached ({type(error).__name__}: {reason})"
        ) from None


def _check_family(config: Any, family: Family) -> None:
    found = config.get("architectures") if isinstance(config, dict) else None
    if not isinstance(found, list) or family.architecture not in found:
        raise ValueError(
            f"the checkpoint there is no {family.name}: architectures in its {CONFIG} "
            f"must have {family.architecture}; got {found!r}"
        )
