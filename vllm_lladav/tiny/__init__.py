# SPDX-License-Identifier: Apache-2.0
"""Small checkpoints in the format of LLaDA-V's.

``lladav-tiny`` is trained (``examples/tiny``) and comes with the package.
``lladav-random`` has random weights, the official vocabulary and special tokens, and
its files are the same bytes on every machine; ``python -m vllm_lladav.tiny OUT`` writes
one.
"""

from pathlib import Path

from vllm_lladav.tiny.cache import ensure_checkpoint

TRAINED = Path(__file__).parent / "trained"
"""Directory of ``lladav-tiny``."""

__all__ = ["TRAINED", "ensure_checkpoint"]
