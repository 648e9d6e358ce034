# SPDX-License-Identifier: Apache-2.0
"""``lladav-tiny``: a small random-weight checkpoint laid out like LLaDA-V's.

It has the official checkpoint's configuration, tensor names, vocabulary and special
tokens at a fraction of its size, and its files are the same bytes on every machine.
``python -m vllm_lladav.tiny OUT`` writes one.
"""

from vllm_lladav.tiny.cache import ensure_checkpoint

__all__ = ["ensure_checkpoint"]
