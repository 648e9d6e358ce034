# SPDX-License-Identifier: Apache-2.0
"""Short names of checkpoints."""

import os

OFFICIAL_CHECKPOINT = "GSAI-ML/LLaDA-V"
MODEL_ENV = "VLLM_LLADAV_MODEL"
MODEL_ALIASES = ("lladav", "lladav-tiny", "lladav-random")


def resolve_alias(alias: str) -> str:
    """Model name or directory that an alias stands for.

    ``lladav`` is the directory in ``VLLM_LLADAV_MODEL`` or the official
    checkpoint on the hub; ``lladav-tiny`` is the small trained checkpoint that comes
    with this package; ``lladav-random`` is one of random weights with the official
    vocabulary, written to the cache directory on first use.
    """
    if alias == "lladav-tiny":
        from vllm_lladav.tiny import TRAINED

        return str(TRAINED)
    if alias == "lladav-random":
        from vllm_lladav.tiny import ensure_checkpoint

        return str(ensure_checkpoint())
    return os.environ.get(MODEL_ENV) or OFFICIAL_CHECKPOINT
