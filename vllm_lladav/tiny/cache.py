# SPDX-License-Identifier: Apache-2.0
"""The random checkpoint in the user's cache directory."""

import os
import tempfile
from pathlib import Path

CONTENT_VERSION = "9812e762ff65"
"""Start of :func:`~vllm_lladav.tiny.checkpoint.content_digest` of the checkpoint.

Part of the directory's name, so that a change of the content gets a new directory.
"""


def ensure_checkpoint() -> Path:
    """Return the directory of the random checkpoint; write it on the first call.

    The directory appears by renaming a finished one: it is complete whenever it
    exists, and of several processes that write at the same time the first one wins.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    target = cache / "vllm-lladav" / f"lladav-random-{CONTENT_VERSION}"
    if target.is_dir():
        return target

    # Imported late: callers that find the checkpoint written need no numpy.
    from vllm_lladav.tiny.checkpoint import write_checkpoint

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".writing-") as scratch:
        written = Path(scratch, target.name)
        write_checkpoint(written)
        try:
            written.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    return target
