# SPDX-License-Identifier: Apache-2.0
"""The questions of a sweep put to an engine in this process."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm_lladav.denoising.plan import StepIndex
from vllm_lladav.model.flops import StepMasks
from vllm_lladav.options.reading import ADDITIONAL_CONFIG_KEY
from vllm_lladav.tools.engine import denoising_state, running_engine
from vllm_lladav.tools.eval.answers import Answer
from vllm_lladav.tools.eval.questions import Question, messages
from vllm_lladav.tools.eval.settings import Setting

if TYPE_CHECKING:
    from vllm import LLM


def running(
    model: str,
    concurrency: int,
    longest: int,
    gen_length: int,
    options: Mapping[str, Any],
) -> AbstractContextManager["LLM"]:
    """An engine that runs ``concurrency`` requests at once, shut down afterwards.

    Args:
        longest: tokens of a request, prompt and canvas, at most.
        gen_length: canvas length of all requests.
        options: of ``vllm.LLM``, over the ones that are set here.
    """
    server = {"plugin": "pruning", "max_gen_length": max(gen_length, 1024)}
    defaults: dict[str, Any] = {
        "max_num_seqs": concurrency,
        # All first steps fit into one iteration: how many requests run at once must
        # not depend on what a setting drops.
        "max_num_batched_tokens": concurrency * longest,
        # Every picture is processed anew (see ``messages``): nothing is found there.
        "mm_processor_cache_gb": 0,
        "limit_mm_per_prompt": {"image": 1},
        "additional_config": {ADDITIONAL_CONFIG_KEY: server},
    }
    return running_engine(model, **{**defaults, **options})


@dataclass(frozen=True)
class EngineTarget:
    """An idle engine of this process. With one worker, steps are observed.

    Args:
        seed: of the first question; the others have the following ones.
    """

    llm: "LLM"
    seed: int = 0

    def ask(self, questions: Sequence[Question], setting: Setting) -> list[Answer]:
        """Ask all at once; answers come in the same order.

        Raises:
            VLLMValidationError: for what the engine refuses.
        """
        from vllm import SamplingParams

        params = [
            SamplingParams(
                max_tokens=None,
                temperature=0.0,
                seed=self.seed + number,
                extra_args=setting.xargs,
            )
            for number in range(len(questions))
        ]
        conversations: list[Any] = [messages(question) for question in questions]
        with _observed(self.llm) as masks:
            outputs = self.llm.chat(conversations, params, use_tqdm=False)
        return [
            Answer.with_report(
                output.kv_transfer_params,
                text=output.outputs[0].text,
                num_tokens=len(output.outputs[0].token_ids),
                is_ended=output.outputs[0].finish_reason == "stop",
                prompt_len=len(output.prompt_token_ids or ()),
                masks=None if masks is None else tuple(masks[output.request_id]),
            )
            for output in outputs
        ]


@contextmanager
def _observed(llm: "LLM") -> Iterator[dict[str, list[StepMasks]] | None]:
    """The steps of the requests that run meanwhile, by their ids; None if they run in
    other processes, as with tensor parallelism."""
    try:
        state = denoising_state(llm)
    except ValueError:
        yield None
        return
    masks: dict[str, list[StepMasks]] = {}

    def observe(req_id: str, index: StepIndex, candidates: int, canvas: int) -> None:
        # vLLM appends a random part to the ids that it hands out.
        request_id = req_id.rpartition("-")[0]
        if index.step == 0:
            # Also when a preempted request starts again.
            masks[request_id] = []
        masks[request_id].append(StepMasks(index, candidates, canvas))

    before, state.on_step = state.on_step, observe
    try:
        yield masks
    finally:
        state.on_step = before
