# SPDX-License-Identifier: Apache-2.0
"""A step asks the device for nothing before the next one can be launched.

On a GPU every number that the host asks for is a wait for all that is queued. Here the
tensors are on a CPU, where asking costs nothing and is done by default; the two places
that do are told that they are on a device with a queue. Not looked at is what of a step
is vLLM's own (attention metadata, the vision encoder, embeddings, where the mask is the
host's) or a CPU's (compaction of its cache).
"""

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.engine.harness import Engine, prompt_of, sampling_of
from vllm_lladav.worker import state as state_module
from vllm_lladav.worker.compaction import FromInputs
from vllm_lladav.worker.device_report import DeviceReport
from vllm_lladav.worker.prune_pass import PrunePass
from vllm_lladav.worker.sampler import DenoisingSampler
from vllm_lladav.worker.state import DenoisingState

aten = torch.ops.aten

ASKING_OPERATIONS = {
    aten._local_scalar_dense,  # item(), and what bool(), int() and float() call
    aten.nonzero,
    aten.masked_select,
    aten.unique_consecutive,
    aten._unique2,
    aten.unique_dim,
    aten.equal,
    aten.bincount,
}

ASKING_METHODS = ("tolist", "numpy", "cpu", "__array__")

SCOPES = (
    (DenoisingState, "prepare_attn"),
    (DenoisingState, "prepare_inputs_embeds"),
    (DenoisingState, "prepare_inputs"),
    (PrunePass, "after_layer"),
    (DenoisingSampler, "__call__"),
)
"""The parts of a step that are ours."""


class Questions(TorchDispatchMode):
    """What is asked of tensors within the scopes, and how many reports are sent."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.num_reports = 0
        self._depth = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        operation = func.overloadpacket
        if operation in ASKING_OPERATIONS:
            self.ask(str(func))
        if operation in (aten.index, aten.index_put, aten.index_put_):
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype == torch.bool for index in indices):
                self.ask(f"{func} with a mask")
        return func(*args, **(kwargs or {}))

    def ask(self, what: str) -> None:
        if self._depth:
            self.asked.append(what)

    def within(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            try:
                with self:
                    return function(*args, **kwargs)
            finally:
                self._depth -= 1

        return counted

    def without(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def uncounted(*args: Any, **kwargs: Any) -> Any:
            depth, self._depth = self._depth, 0
            try:
                return function(*args, **kwargs)
            finally:
                self._depth = depth

        return uncounted

    def method(self, name: str) -> Callable[..., Any]:
        function = getattr(torch.Tensor, name)

        def asking(*args: Any, **kwargs: Any) -> Any:
            self.ask(f"Tensor.{name}")
            return function(*args, **kwargs)

        return asking

    def report(self) -> Callable[..., Any]:
        send = DeviceReport.__init__

        def counted(report: DeviceReport, numbers: torch.Tensor) -> None:
            self.num_reports += 1
            send(report, numbers)

        return counted


@contextmanager
def queued(engine: Engine) -> Iterator[None]:
    """The engine's worker behaves as on a device with a queue."""
    runner = engine.core.model_executor.driver_worker.worker.model_runner
    with (
        patch.object(engine.state, "is_queued", True),
        patch.object(runner.sampler, "has_official_order", False),
    ):
        yield


@contextmanager
def questions(engine: Engine) -> Iterator[Questions]:
    found = Questions()
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(queued(engine))
        for owner, name in SCOPES:
            enter(patch.object(owner, name, found.within(getattr(owner, name))))
        runner = engine.state.encoder_runner
        for owner, name in (
            (state_module, "build_attn_metadata"),
            (engine.state, "execute_mm_encoder"),
            (runner, "gather_mm_embeddings"),
            (engine.model, "embed_input_ids"),
            (FromInputs, "move"),
            (DeviceReport, "read"),
        ):
            enter(patch.object(owner, name, found.without(getattr(owner, name))))
        for name in ASKING_METHODS:
            enter(patch.object(torch.Tensor, name, found.method(name)))
        enter(patch.object(DeviceReport, "__init__", found.report()))
        yield found


ALONE: dict[str, dict[str, Any]] = {
    "exact": {},
    "blocks": {"block_length": 8, "steps": 8},
    "prompt": {"cache": "prompt", "refresh_interval": 3},
    "dual": {"cache": "dual", "block_length": 8, "steps": 8},
    "prefix": {"cache": "prefix", "block_length": 8, "steps": 8},
    "confident": {"block_length": 8, "steps": 16, "confidence_threshold": 0.05},
    "guided": {"cfg_scale": 1.5, "steps": 4},
    "random": {"remasking": "random", "steps": 8},
}
"""Arguments of requests with 16 canvas positions."""


def params_of(case: Any, args: dict[str, Any], **fields: Any) -> Any:
    params = sampling_of(case, max_tokens=16, seed=3, **fields)
    params.extra_args |= {"gen_length": 16, "block_length": 16, "steps": 16, **args}
    return params


def add_all(engine: Engine, golden_cases: Any) -> list[str]:
    text, picture = golden_cases["text_32_32_32"], golden_cases["img_square"]
    prompt = prompt_of(text)
    names = [engine.add(prompt, params_of(text, args)) for args in ALONE.values()]
    names.append(engine.add(prompt, params_of(text, {}, temperature=0.8)))
    stop = params_of(text, {"cache": "dual", "steps": 4})
    stop.stop_token_ids = [5, 7]
    names.append(engine.add(prompt, stop))
    for args in ({}, {"cfg_scale": 1.0}, {"cache": "dual"}):
        pruned = {"prune_rate": 0.5, "prune_layer": 2, "steps": 4, **args}
        names.append(engine.add(prompt_of(picture), params_of(picture, pruned)))
    return names


def test_host_is_not_asked(engine: Engine, golden_cases):
    """All kinds of requests in one batch, from their first step to their end: one
    report a step, nothing else; and the answers are those of the host that asks."""
    names = add_all(engine, golden_cases)
    with questions(engine) as found:
        answers = engine.finish()
    assert not found.asked
    assert found.num_reports == len(engine.num_scheduled) >= 16
    again = add_all(engine, golden_cases)
    expected = engine.finish()
    # Where it ends, a stop leaves fewer candidates than transfers.
    for name, other in zip(names, again, strict=True):
        assert answers[name].token_ids == expected[other].token_ids


def test_questions_are_seen(engine: Engine, golden_cases):
    """The official order asks, and so do log-probabilities."""
    text = golden_cases["text_32_32_32"]
    with questions(engine) as found:
        runner = engine.core.model_executor.driver_worker.worker.model_runner
        runner.sampler.has_official_order = True
        engine.answer(prompt_of(text), params_of(text, {}))
        assert any("nonzero" in what for what in found.asked)
        runner.sampler.has_official_order = False
        found.asked.clear()
        engine.answer(prompt_of(text), params_of(text, {}, logprobs=1))
        assert "Tensor.cpu" in found.asked


def test_nothing_is_kept_of_requests_that_are_gone(engine: Engine, golden_cases):
    """But the report of their last step, which is read a step later."""

    def hidden_states() -> Counter[int]:
        """Rows of all that is as wide as the model."""
        gc.collect()
        width = engine.llm.model_config.get_hidden_size()
        return Counter(
            len(found)
            for found in gc.get_objects()
            if type(found) is torch.Tensor
            and found.dim() == 2
            and found.shape[1] == width
        )

    text, picture = golden_cases["text_32_32_16"], golden_cases["img_square"]
    with queued(engine):
        before = hidden_states()
        engine.answer_case(picture)
        engine.add_case(text)
        engine.step()
        unread = [step.requests for step in engine.state._unread]
        assert len(unread) == 2 and unread[0] != unread[1]
        new = (hidden_states() - before).elements()
        engine.finish()
    # The encoder cache keeps the picture.
    assert {rows for rows in new if rows > 1000} <= {picture.visual_tokens[0]}


@pytest.mark.parametrize("name", ["text_32_8_32", "text_suffix_stop", "img_square"])
def test_host_a_step_behind(engine: Engine, golden_cases, name: str):
    """What the host knows of the canvas is a step old: as many rows are predicted as
    there may be candidates."""
    case = golden_cases[name]
    with queued(engine):
        answer = engine.answer_case(case)
    assert tuple(answer.token_ids) == case.output_ids
