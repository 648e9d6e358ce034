# SPDX-License-Identifier: Apache-2.0
"""A real scheduler, and a worker that denoises real canvases with a made-up model."""

from collections import Counter
from typing import Any

import numpy as np
import torch
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
)
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from tests.canvas import OneCanvas
from vllm_lladav.denoising.marks import PruneReport
from vllm_lladav.denoising.params import RESOLVED_KEY, DenoisingParams
from vllm_lladav.denoising.plan import StepPlan
from vllm_lladav.scheduler.scheduler import DenoisingScheduler
from vllm_lladav.scheduler.turns import Turns

MASK, WORD, STOP = 0, 5, 6
KV_BLOCK = 8
KNEE = 16  # Small enough for the steps of these tests to have cost more.


def make_request(
    name: str,
    prompt_len: int,
    gen_length: int = 8,
    images: tuple[int, ...] = (),
    stops: tuple[str, ...] = (),
    text_stops: tuple[str, ...] = (),
    priority: int = 0,
    **changes: Any,
) -> Request:
    """A step for each of ``gen_length`` positions, if not changed. Images stand at the
    beginning of the prompt."""
    values: dict[str, Any] = {
        "block_length": gen_length,
        "steps": gen_length,
        "temperature": 0.0,
        "remasking": "low_confidence",
        "seed": None,
        "max_answer_tokens": gen_length,
        "stop_sequences": ((STOP,),) * len(stops),
        "stops": stops,
    }
    params = DenoisingParams(gen_length=gen_length, **values | changes)
    sampling = SamplingParams(
        max_tokens=gen_length,
        temperature=0.0,
        stop=list(text_stops),
        extra_args={RESOLVED_KEY: params.to_values()},
    )
    starts = np.cumsum([0, *images]).tolist()
    features = [
        MultiModalFeatureSpec(
            data=None,
            modality="image",
            identifier=f"{name}-{start}",
            mm_position=PlaceholderRange(offset=start, length=length),
        )
        for start, length in zip(starts, images, strict=False)
    ]
    prompt = [WORD] * prompt_len
    return Request(
        name, prompt, sampling, None, mm_features=features, priority=priority
    )


class Rig:
    """Runs iterations and keeps what came of them.

    Attributes:
        scheduled: tokens of every request, iteration by iteration.
        full_rows: those of the full steps among them, of iterations that are over.
        admitted: names, in order.
        answers: tokens of every request.
        parts: the latest outputs, by name.
        ended: last outputs, by name.
        longest_wait: iterations from one step of a request to the next.
        stats: that left the scheduler, iteration by iteration.
    """

    def __init__(
        self,
        config: VllmConfig,
        budget: int,
        full_step_tokens: int = 0,
        num_kv_blocks: int = 1000,
        max_seqs: int = 100,
    ) -> None:
        config.additional_config = {"lladav": {"full_step_tokens": full_step_tokens}}
        config.cache_config.block_size = KV_BLOCK
        config.cache_config.num_gpu_blocks = num_kv_blocks
        spec = FullAttentionSpec(
            block_size=KV_BLOCK, num_kv_heads=1, head_size=8, dtype=torch.float32
        )
        self.scheduler = DenoisingScheduler(
            config,
            KVCacheConfig(num_kv_blocks, [], [KVCacheGroupSpec(["layer"], spec)]),
            StructuredOutputManager(config),
            block_size=KV_BLOCK,
            log_stats=True,
        )
        self.scheduler._turns = Turns(KNEE)
        self.scheduler.max_num_scheduled_tokens = budget
        self.scheduler.max_num_active_reqs = max_seqs
        self.budget = budget
        self.stop_at: dict[str, int] = {}  # Canvas positions.
        self.scheduled: list[dict[str, int]] = []
        self.full_rows: list[int] = []
        self.admitted: list[str] = []
        self.answers: dict[str, list[int]] = {}
        self.parts: dict[str, EngineCoreOutput] = {}
        self.ended: dict[str, EngineCoreOutput] = {}
        self.longest_wait: Counter[str] = Counter()
        self.stats: list[Any] = []
        self._last: dict[str, int] = {}
        self._canvases: dict[str, tuple[OneCanvas, StepPlan, int]] = {}

    @property
    def free_blocks(self) -> int:
        return self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()

    def add(self, *requests: Request) -> None:
        for request in requests:
            self.scheduler.add_request(request)
            self.answers[request.request_id] = []

    def dispatch(self) -> SchedulerOutput:
        output = self.scheduler.schedule()
        assert output.total_num_scheduled_tokens <= self.budget
        self.admitted += [new.req_id for new in output.scheduled_new_reqs]
        number = len(self.scheduled)
        for name in output.num_scheduled_tokens:
            wait = number - self._last.get(name, number)
            self.longest_wait[name] = max(self.longest_wait[name], wait)
            self._last[name] = number
        self.scheduled.append(dict(output.num_scheduled_tokens))
        return output

    def receive(self, output: SchedulerOutput) -> None:
        self.full_rows.append(0)
        tokens = [self._denoise(name, output) for name in output.num_scheduled_tokens]
        names = list(output.num_scheduled_tokens)
        places = {name: index for index, name in enumerate(names)}
        groups = self.scheduler.update_from_output(
            output, ModelRunnerOutput(names, places, tokens)
        )
        for group in groups.values():
            if group.scheduler_stats is not None:
                self.stats.append(group.scheduler_stats.spec_decoding_stats)
            for part in group.outputs:
                self.answers[part.request_id] += part.new_token_ids
                self.parts[part.request_id] = part
                if part.finish_reason is not None:
                    self.ended[part.request_id] = part

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.receive(self.dispatch())

    def finish(self, most: int = 1000) -> None:
        for _ in range(most):
            if not self.scheduler.has_requests():
                return
            self.step()
        raise AssertionError(f"not done: {list(self.scheduler.requests)}")

    def _denoise(self, name: str, output: SchedulerOutput) -> list[int]:
        """As a worker does: from the request's parameters and its own canvas."""
        for new in output.scheduled_new_reqs:
            if new.req_id == name:
                self._canvases[name] = self._started(new)
        canvas, plan, num_visual = self._canvases[name]
        if canvas.finished:
            return []
        step = plan.at(canvas.index, num_visual)
        assert output.num_scheduled_tokens[name] == step.num_rows, name
        self.full_rows[-1] += step.num_rows * step.is_full
        pruned = None
        if step.stages:
            num_visual, before = step.num_visual_after, num_visual
            canvas.keep_prompt(np.arange(before - num_visual, canvas.prompt_len))
            pruned = PruneReport(num_visual, 1)
        self._canvases[name] = canvas, plan, num_visual
        layout = plan.at(step.index, num_visual).layout
        candidates = canvas.candidates(layout.first)
        words = np.full(len(canvas), WORD)
        if name in self.stop_at:
            words[canvas.prompt_len + self.stop_at[name]] = STOP
        canvas.transfer(
            candidates,
            words[candidates],
            -torch.arange(len(candidates)).double(),
            words.__getitem__,
            layout,
        )
        return canvas.take_output(pruned)

    def _started(self, new: Any) -> tuple[OneCanvas, StepPlan, int]:
        values = new.sampling_params.extra_args[RESOLVED_KEY]
        params = DenoisingParams.from_values(values, None)
        prompt = new.prompt_token_ids
        num_emitted = len(new.prefill_token_ids) - len(prompt)
        lengths = tuple(feature.mm_position.length for feature in new.mm_features)
        plan = StepPlan(params, len(prompt), lengths)
        return OneCanvas(params, prompt, MASK, num_emitted), plan, plan.num_visual
