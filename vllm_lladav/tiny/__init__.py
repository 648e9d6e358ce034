# SPDX-License-Identifier: Apache-2.0
"""Small checkpoints in the format of LLaDA-V's.

``lladav-tiny`` is trained (``examples/tiny``) and comes with the package.
``lladav-random`` has random weights, the official vocabulary and special tokens, and
its files are the same bytes on every machine; ``python -m vllm_lladav.tiny OUT`` writes
one.
"""

import os
import tempfile
from pathlib import Path

TRAINED = Path(__file__).parent / "trained"
"""Directory of ``lladav-tiny``."""

CONTENT_VERSION = "9812e762ff65"
"""Start of :func:`~vllm_lladav.tiny.checkpoint.content_digest` of the preset ``tiny``.

Part of the names of cached directories, so that a change of what is written gets new
ones.
"""

_NAMES = {"tiny": "lladav-random", "mid": "lladav-mid"}


def ensure_checkpoint(preset: str = "tiny") -> Path:
    """Return the directory of a random checkpoint in the user's cache directory; write
    it on the first call.

    The directory appears by renaming a finished one: it is complete whenever it
    exists, and of several processes that write at the same time the first one wins.

    Args:
        preset: ``tiny`` (67 MB) or ``mid`` (0.3 GB, for benchmarks: wide enough that
            arithmetic, not Python, takes the time of a step).
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    target = cache / "vllm-lladav" / f"{_NAMES[preset]}-{CONTENT_VERSION}"
    if target.is_dir():
        return target

    # Imported late: callers that find the checkpoint written need no numpy.
    from vllm_lladav.tiny.checkpoint import write_checkpoint

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".writing-") as scratch:
        written = Path(scratch, target.name)
        write_checkpoint(written, preset)
        try:
            written.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    return target
