# SPDX-License-Identifier: Apache-2.0
"""Lines of vLLM that are left out of our log are lines that vLLM has."""

import logging
from importlib.util import find_spec
from pathlib import Path

import pytest

from vllm_lladav.frontend.quiet_log import LINES, Line, quiet_log


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.start)
def test_vllm_logs_it_there(line: Line):
    spec = find_spec(line.logger)
    assert spec is not None and spec.origin is not None
    text = Path(spec.origin).read_text(encoding="utf-8")
    assert line.start.partition("vllm_lladav.")[0] in text


def test_others_of_the_logger_stay(caplog: pytest.LogCaptureFixture):
    quiet_log()
    quiet_log()
    logger = logging.getLogger("vllm.config.scheduler")
    assert len(logger.filters) == 1
    with caplog.at_level(logging.WARNING, logger="vllm"):
        logger.warning("Using custom scheduler class %s. And so on", "vllm_lladav.a")
        logger.warning("Using custom scheduler class %s. And so on", "theirs")
    assert [record.args for record in caplog.records] == [("theirs",)]
