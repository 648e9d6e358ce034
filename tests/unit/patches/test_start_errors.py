# SPDX-License-Identifier: Apache-2.0
"""What a server says while its engine starts."""

import logging
import threading
import time

import pytest

from vllm_lladav.patches import start_errors
from vllm_lladav.plugin import register


def test_it_says_that_it_waits(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Now and then, and no longer than it does."""
    register()
    monkeypatch.setattr(start_errors, "SAY_S", 0.05)
    before = threading.active_count()
    with caplog.at_level(logging.INFO, logger="vllm"):
        with start_errors.said_meanwhile():
            time.sleep(0.2)
        time.sleep(0.2)
    assert threading.active_count() == before
    assert all("Waiting for the engine" in text for text in caplog.messages)
    assert 1 <= len(caplog.messages) <= 4
