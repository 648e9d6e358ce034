# SPDX-License-Identifier: Apache-2.0
"""Requests that a client gave up are counted.

Why: ``vllm:request_success_total{finished_reason="abort"}`` stays 0: the front end
forgets an aborted request before the engine could report its end.
How: wraps ``OutputProcessor.abort_requests``, which knows what was aborted, and
``AsyncLLM.abort``, which knows the counter. All count as those of the first engine.
Affects: servers of our models only.
Can go: when vLLM counts aborts.
"""

from typing import Any

from vllm_lladav.model.families import is_ours
from vllm_lladav.patches.wrapping import wrap


def apply() -> None:
    from vllm.v1.engine import FinishReason
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.output_processor import OutputProcessor
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    @wrap(OutputProcessor, "abort_requests")
    def abort_and_note(
        abort: Any, self: Any, request_ids: Any, internal: bool
    ) -> list[str]:
        aborted: list[str] = abort(self, request_ids, internal)
        # A request with several answers aborts them through this function again.
        if hasattr(self, "lladav_aborted"):
            self.lladav_aborted.update(aborted)
        return aborted

    @wrap(AsyncLLM, "abort")
    async def abort_and_count(
        abort: Any, self: Any, request_id: Any, internal: bool = False
    ) -> None:
        if not is_ours(self.model_config) or self.logger_manager is None:
            await abort(self, request_id, internal)
            return
        processor = self.output_processor
        noted = processor.lladav_aborted = getattr(processor, "lladav_aborted", set())
        try:
            await abort(self, request_id, internal)
        finally:
            for logger in self.logger_manager.stat_loggers:
                if isinstance(logger, PrometheusStatLogger):
                    counters = logger.counter_request_success[FinishReason.ABORT]
                    next(iter(counters.values())).inc(len(noted))
            noted.clear()
