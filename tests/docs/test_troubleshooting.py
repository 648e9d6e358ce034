# SPDX-License-Identifier: Apache-2.0
"""Every message of ``docs/troubleshooting.md`` is one of the code, or of vLLM's."""

import importlib.util
import re
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT
from tests.docs.messages import pattern_of, texts_of

VLLM_FILES = (
    "exceptions.py",
    "transformers_utils/config.py",
    "v1/core/kv_cache_utils.py",
    "v1/worker/cpu_worker.py",
    "v1/worker/utils.py",
)
MESSAGES = re.findall(
    r"^\| `([^`]+)` \| \S",
    (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"),
    re.M,
)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.submodule_search_locations is not None
    vllm = Path(spec.submodule_search_locations[0])
    ours = [
        file
        for folder in ("vllm_lladav", "patches", "tools")
        for file in (ROOT / folder).rglob("*.py")
    ]
    return list(texts_of([*ours, *(vllm / name for name in VLLM_FILES)]))


def test_there_are_messages() -> None:
    assert len(MESSAGES) > 30


@pytest.mark.parametrize("message", MESSAGES)
def test_message_is_in_the_code(message: str, texts: list[str]) -> None:
    pattern = pattern_of(message)
    assert any(pattern.search(text) for text in texts)
