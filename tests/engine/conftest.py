# SPDX-License-Identifier: Apache-2.0
"""Engines that tests share. vLLM is imported late: unit tests must not wait for it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.golden.cases import GoldenCase

if TYPE_CHECKING:
    from tests.engine.harness import Engine


@pytest.fixture(scope="session")
def start_engine() -> Iterator[Callable[..., "Engine"]]:
    """Starts in-process engines and keeps them until the end."""
    import torch

    from tests.engine.harness import Engine

    # Threads that wait for each other take ten times as long on a busy machine.
    torch.set_num_threads(1)

    engines: list[Engine] = []

    def start(model: Path, **options: Any) -> Engine:
        engines.append(Engine(model, **options))
        return engines[-1]

    yield start
    for engine in engines:
        engine.llm.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="session")
def shared_engine(start_engine: Callable[..., "Engine"], tiny_checkpoint: Path):
    return start_engine(tiny_checkpoint)


@pytest.fixture
def engine(shared_engine: "Engine") -> Iterator["Engine"]:
    """The roomy engine of most tests, idle before and after each of them."""
    assert not shared_engine.is_busy
    shared_engine.reset_observations()
    yield shared_engine
    for name in list(shared_engine.answers):
        shared_engine.abort(name)
    shared_engine.finish()


@pytest.fixture(scope="session")
def text_case(golden_cases: dict[str, GoldenCase]) -> GoldenCase:
    """32 steps, no stop."""
    return golden_cases["text_32_32_32"]
