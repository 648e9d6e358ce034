# SPDX-License-Identifier: Apache-2.0
"""An engine in this process, driven step by step.

Several engines can live at the same time, but shutting one down tears down
vLLM's process-wide state under the others: they are kept until all tests are done
(see ``conftest.py``).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from vllm import SamplingParams
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind

from tests.golden.cases import (
    GoldenCase,
    cache_args,
    is_prompt_cache,
    pruning_args,
    stop_args,
)
from vllm_lladav.scheduler.scheduler import DenoisingScheduler
from vllm_lladav.tools.engine import denoising_state, engine_core, start_engine
from vllm_lladav.worker.ending_step import EndingStep
from vllm_lladav.worker.scoring import Pruned
from vllm_lladav.worker.state import DenoisingState

KV_BLOCK = 128
"""Tokens per KV block on CPUs."""

KV_BLOCK_BYTES = 4 * 2 * 128 * 4 * KV_BLOCK
"""Of the tiny checkpoint: layers, K and V, hidden size, float32."""


def is_servable(case: GoldenCase) -> bool:
    """Whether the engine has what the case was recorded with."""
    return is_prompt_cache(case) and not case.config_overrides


def prompt_of(case: GoldenCase) -> Any:
    """The case's prompt for ``LLMEngine.add_request``."""
    prompt: dict[str, Any] = {"prompt": case.prompt}
    if case.images:
        prompt["multi_modal_data"] = {"image": images_of(case)}
        prompt["mm_processor_kwargs"] = {"image_mode": case.image_mode}
    return prompt


def images_of(case: GoldenCase) -> list[Image.Image]:
    return [Image.open(path) for path in case.image_paths]


def sampling_of(case: GoldenCase, **changes: Any) -> SamplingParams:
    """The case's arguments; the answer ends where the official code ends it."""
    generate = case.generate
    fields: dict[str, Any] = {
        "max_tokens": None,
        "temperature": 0.0,
        "stop": list(generate.stopping_criteria),
        "ignore_eos": not generate.stopping_criteria,
        "skip_special_tokens": False,
        "extra_args": {
            "gen_length": generate.gen_length,
            "block_length": generate.block_length,
            "steps": generate.steps,
            "generation_suffix": generate.generation_suffix,
            "cfg_scale": generate.cfg_scale,
            **stop_args(case),
            **cache_args(case),
            **pruning_args(case),
        },
    }
    return SamplingParams(**{**fields, **changes})


def recorded_steps(case: GoldenCase) -> list[list[int]]:
    """What every step of the official code transferred: canvas positions, sorted.

    Positions that it selected although they were no masks keep their token.
    """
    return [
        sorted(p for p, m in zip(step.positions, step.was_mask, strict=True) if m)
        for step in case.steps
    ]


@dataclass
class Answer:
    """What came back for one request."""

    token_ids: list[int] = field(default_factory=list)
    deltas: list[list[int]] = field(default_factory=list)
    text: str = ""
    logprobs: list[Any] = field(default_factory=list)
    output: RequestOutput | None = None  # The last one.

    @property
    def last(self) -> RequestOutput:
        assert self.output is not None, "nothing came back"
        return self.output

    @property
    def prompt_token_ids(self) -> list[int]:
        return list(self.last.prompt_token_ids or ())

    @property
    def finish_reason(self) -> str | None:
        return self.last.outputs[0].finish_reason

    @property
    def stop_reason(self) -> int | str | None:
        return self.last.outputs[0].stop_reason


class Engine:
    """``vllm.LLM`` in this process, and its insides."""

    def __init__(self, model: str | Path, **options: Any) -> None:
        defaults: dict[str, Any] = {
            "dtype": "float32",
            "kv_cache_memory_bytes": 1 << 28,
            "max_num_seqs": 16,
            # Tests of answers want large batches, so full steps are not limited.
            "additional_config": {
                "lladav": {"plugin": "pruning", "full_step_tokens": 0}
            },
        }
        self.llm = start_engine(model, **{**defaults, **options})
        self.core = engine_core(self.llm)
        self.scheduler: DenoisingScheduler = self.core.scheduler
        self.answers: dict[str, Answer] = {}
        self._num_added = 0
        self._schedule = self.scheduler.schedule
        self.scheduler.schedule = self._observed_schedule
        self.reset_observations()

    @property
    def model(self) -> Any:
        return self.core.model_executor.driver_worker.worker.get_model()

    @property
    def state(self) -> DenoisingState:
        return denoising_state(self.llm)

    @property
    def held_blocks(self) -> dict[str, int]:
        """KV blocks of every request, by name."""
        (manager,) = self.scheduler.kv_cache_manager.coordinator.single_type_managers
        return {
            _external_name(request_id): len(blocks)
            for request_id, blocks in manager.req_to_blocks.items()
            if blocks
        }

    @property
    def free_blocks(self) -> int:
        return self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()

    @property
    def all_blocks(self) -> int:
        """Without vLLM's null block."""
        return self.core.vllm_config.cache_config.num_gpu_blocks - 1

    @property
    def running(self) -> list[str]:
        return [_external_name(r.request_id) for r in self.scheduler.running]

    def add(
        self, prompt: Any, params: SamplingParams, name: str = "", priority: int = 0
    ) -> str:
        """Queue a request; its answer is collected in deltas."""
        self._num_added += 1
        name = name or f"request{self._num_added}"
        params = params.clone()
        params.output_kind = RequestOutputKind.DELTA
        self.llm.llm_engine.add_request(name, prompt, params, priority=priority)
        self.answers[name] = Answer()
        return name

    def add_case(
        self, case: GoldenCase, name: str = "", priority: int = 0, **changes: Any
    ) -> str:
        params = sampling_of(case, **changes)
        return self.add(prompt_of(case), params, name or case.name, priority)

    def abort(self, name: str) -> None:
        self.llm.llm_engine.abort_request([name])

    @property
    def is_busy(self) -> bool:
        return self.llm.llm_engine.has_unfinished_requests()

    def step(self, num_steps: int = 1) -> None:
        for _ in range(num_steps):
            for output in self.llm.llm_engine.step():
                assert isinstance(output, RequestOutput)
                answer = self.answers[output.request_id]
                delta = list(output.outputs[0].token_ids)
                answer.deltas.append(delta)
                answer.token_ids += delta
                answer.text += output.outputs[0].text
                answer.logprobs += output.outputs[0].logprobs or []
                answer.output = output

    def finish(self) -> dict[str, Answer]:
        """Step until nothing is left; hand over all answers since the last time."""
        while self.is_busy:
            self.step()
        answers, self.answers = self.answers, {}
        return answers

    def reset_observations(self) -> None:
        self.max_in_flight = 0  # Requests in one iteration.
        self.num_overlapped = 0  # Iterations begun before the last one's output.
        self.admitted: list[str] = []  # In order; again after a preemption.
        self.num_scheduled: list[int] = []  # Tokens of every iteration.

    def _observed_schedule(self, *args: Any, **kwargs: Any) -> Any:
        is_open = len(self.scheduler._dispatch_times) > 0
        output = self._schedule(*args, **kwargs)
        self.num_overlapped += is_open and output.total_num_scheduled_tokens > 0
        self.num_scheduled.append(output.total_num_scheduled_tokens)
        self.max_in_flight = max(self.max_in_flight, len(output.num_scheduled_tokens))
        self.admitted += [
            _external_name(request.req_id) for request in output.scheduled_new_reqs
        ]
        return output

    def answer(self, prompt: Any, params: SamplingParams) -> Answer:
        """Run one request alone."""
        name = self.add(prompt, params)
        return self.finish()[name]

    def answer_case(self, case: GoldenCase, **changes: Any) -> Answer:
        return self.answer(prompt_of(case), sampling_of(case, **changes))


def _external_name(request_id: str) -> str:
    """vLLM appends a random part to the names that it is given."""
    return request_id.rpartition("-")[0]


@contextmanager
def recorded_pruning(engine: Engine) -> Iterator[dict[str, list[Pruned]]]:
    """What every stage did to requests that are added now, by name."""
    stages: dict[str, list[Pruned]] = {}

    def record(request_id: str, pruned: Pruned) -> None:
        stages.setdefault(_external_name(request_id), []).append(pruned)

    with patch.object(engine.state, "on_pruned", record):
        yield stages


@contextmanager
def recorded_transfers() -> Iterator[list[list[int]]]:
    """What every step of the only running request transfers: canvas positions."""
    steps: list[list[int]] = []
    record_logprobs = EndingStep.record_logprobs

    def record(self: EndingStep, chosen: torch.Tensor) -> None:
        (is_running,) = self.canvas.was_running.tolist()
        if is_running:
            positions = self.layout(0).positions
            start = positions[self.canvas.batch.in_canvas[0]][0]
            steps.append((positions[chosen[0]] - start).tolist())
        record_logprobs(self, chosen)

    with patch.object(EndingStep, "record_logprobs", record):
        yield steps
