# SPDX-License-Identifier: Apache-2.0
"""Hooks of MkDocs: the site has the repository's files under their own paths.

So a link that leads somewhere on GitHub leads there in the site, too: to a page, or to
a file that is copied.
"""

import re
import subprocess
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
LEFT_OUT = (":!.*", ":!*.npz", ":!*.safetensors")
"""Hidden and large files, as patterns of git."""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """The theme's files, and ours instead of those that MkDocs found in ``docs``."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *LEFT_OUT],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    theirs = [file for file in files if file.src_dir != config.docs_dir]
    ours = [
        File.generated(config, name, abs_src_path=str(ROOT / name))
        for name in listing.stdout.splitlines()
        if (ROOT / name).is_file()
    ]
    return Files([*theirs, *ours])


def on_page_content(html: str, **_: object) -> str:
    """Docstrings name code by Sphinx' roles, which Markdown knows nothing of."""
    return re.sub(r":(?:attr|class|data|func|meth|mod):(?=<code>)", "", html)
