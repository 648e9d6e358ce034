# SPDX-License-Identifier: Apache-2.0
"""A canvas that is watched costs the others nothing, and the host no wait."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.output_processor import OutputProcessor

from tests.engine.harness import Engine, prompt_of, recorded_steps, sampling_of
from tests.engine.test_host_is_not_asked import add_all, questions
from tests.golden.cases import GoldenCase
from vllm_lladav.denoising.frame import Frame, FrameHead
from vllm_lladav.frontend import admission
from vllm_lladav.live.asking import ChannelNumber
from vllm_lladav.live.channels import CHANNELS, Channel
from vllm_lladav.worker.sampler import DenoisingSampler


@contextmanager
def watched(case: GoldenCase, **changes: Any) -> Iterator[tuple[Any, Channel]]:
    """Parameters of a request of an engine that lets it be watched, and what is."""
    channel, server_of = Channel(), admission.server_of
    params = sampling_of(case, **changes)
    params.extra_args["live_canvas"] = ChannelNumber(channel.number)
    with patch.object(
        admission,
        "server_of",
        lambda config: replace(server_of(config), live_canvas="on"),
    ):
        yield params, channel
    channel.close()


def frames_of(channel: Channel) -> list[Frame]:
    found = [channel.get_nowait() for _ in range(channel.qsize())]
    return [Frame.from_values(shown.frame) for shown in found]


@contextmanager
def recorded_rows() -> Iterator[list[Any]]:
    """What every step sends beside tokens: a tensor, or None."""
    rows: list[Any] = []
    end_step = DenoisingSampler.__call__

    def record(self: DenoisingSampler, *args: Any) -> Any:
        output = end_step(self, *args)
        rows.append(output.num_nans)
        return output

    with patch.object(DenoisingSampler, "__call__", record):
        yield rows


@contextmanager
def recorded_outputs() -> Iterator[list[Any]]:
    """What reaches the front end: outputs of the engine core."""
    outputs: list[Any] = []
    process = OutputProcessor.process_outputs

    def record(self: Any, engine_core_outputs: Any, *args: Any, **kwargs: Any) -> Any:
        outputs.extend(engine_core_outputs)
        return process(self, engine_core_outputs, *args, **kwargs)

    with patch.object(OutputProcessor, "process_outputs", record):
        yield outputs


def test_off_by_default(engine: Engine, golden_cases):
    params = sampling_of(golden_cases["text_16_16_40"])
    params.extra_args["live_canvas"] = 1
    with pytest.raises(VLLMValidationError, match="runs with --live-canvas on"):
        engine.add(prompt_of(golden_cases["text_16_16_40"]), params)


def test_nothing_is_sent_that_nobody_watches(engine: Engine, golden_cases):
    """No copy from the device, no output without tokens, no field before the end."""
    with recorded_rows() as rows, recorded_outputs() as outputs:
        names = add_all(engine, golden_cases)
        engine.finish()
    assert len(rows) >= 16 and rows == [None] * len(rows)
    assert all(output.new_token_ids for output in outputs)
    figures = [o for o in outputs if o.kv_transfer_params is not None]
    assert len(figures) == len(names)
    assert all(o.finish_reason is not None for o in figures)


def test_host_is_not_asked(engine: Engine, golden_cases):
    """One request of many is watched: a row a step for it, none for the others, and
    nobody waits."""
    case = golden_cases["prune_r50_k2_all"]
    others = add_all(engine, golden_cases)
    with watched(case) as (params, channel), recorded_rows() as rows:
        name = engine.add(prompt_of(case), params)
        with questions(engine) as found:
            answers = engine.finish()
        frames = frames_of(channel)
    assert not found.asked
    assert found.num_reports == len(engine.num_scheduled)
    assert set(others) < set(answers)
    assert tuple(answers[name].token_ids) == case.output_ids
    sent = [row for row in rows if row is not None]
    # The host learns of the end a step late.
    assert len(frames) == 16 <= len(sent) <= 17
    assert {len(row) for row in sent} == {1}
    assert len(sent[-1][0]) == len(FrameHead._fields) + 16
    positions = [[one.position for one in frame.unmasked] for frame in frames]
    assert positions == recorded_steps(case)
    assert list(frames[0].kept or ()) == case.tensors["prune_kept_visual"].tolist()
    assert {frame.kept for frame in frames[1:]} == {None}
    assert [frame.is_last for frame in frames] == [False] * 15 + [True]


def test_nothing_is_kept_of_a_watcher_that_left(engine: Engine, golden_cases):
    case = golden_cases["text_32_32_32"]
    with watched(case) as (params, channel):
        name = engine.add(prompt_of(case), params)
        engine.step(3)
        engine.abort(name)
        engine.finish()
        assert 2 <= channel.qsize() <= 3
    assert channel.number not in CHANNELS
    assert not engine.scheduler._showing._begun
    assert not engine.scheduler._showing._shown
