# SPDX-License-Identifier: Apache-2.0
"""Package list; everything else is in ``pyproject.toml``.

The top-level folder ``patches/`` is shipped as ``vllm_lladav.patches``.
"""

from setuptools import find_packages, setup

setup(
    packages=find_packages(include=["vllm_lladav", "vllm_lladav.*"])
    + [f"vllm_lladav.{name}" for name in find_packages(include=["patches*"])],
    package_dir={"vllm_lladav.patches": "patches"},
)
