# SPDX-License-Identifier: Apache-2.0
"""Packages and readme; everything else is in ``pyproject.toml``.

The top-level folder ``patches/`` is shipped as ``vllm_lladav.patches``.
"""

import os
import sys
from pathlib import Path

from setuptools import find_packages, setup

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "tools"))

from index_readme import index_readme

setup(
    packages=find_packages(include=["vllm_lladav", "vllm_lladav.*"])
    + [f"vllm_lladav.{name}" for name in find_packages(include=["patches*"])],
    package_dir={"vllm_lladav.patches": "patches"},
    long_description=index_readme(Path()),
    long_description_content_type="text/markdown",
)
