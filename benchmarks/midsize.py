# SPDX-License-Identifier: Apache-2.0
"""The mid-size random checkpoint that the pruning benchmarks run on.

    python benchmarks/midsize.py

Hidden size 512, 8 layers, 8 heads of 64, MLP of 1536, and the official vocabulary and
tokenizer: wide enough that arithmetic, not Python, takes the time of a step. It is
written once (0.3 GB) and kept in the user's cache directory.
"""

import os
import tempfile
from pathlib import Path

from vllm_lladav.tiny.cache import CONTENT_VERSION


def ensure_midsize() -> Path:
    """The checkpoint's directory; it is written on the first call."""
    from vllm_lladav.tiny.checkpoint import write_checkpoint

    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    # The writer's version: it changes with the content of all that it writes.
    target = cache / "vllm-lladav" / f"lladav-mid-{CONTENT_VERSION}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".writing-") as scratch:
        written = Path(scratch, target.name)
        write_checkpoint(written, "mid")
        try:
            written.rename(target)
        except OSError:  # Another process was faster.
            if not target.is_dir():
                raise
    return target


if __name__ == "__main__":
    print(ensure_midsize())
