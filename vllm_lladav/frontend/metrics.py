# SPDX-License-Identifier: Apache-2.0
"""Denoising statistics on ``/metrics``."""

from functools import cache
from typing import TYPE_CHECKING, Any

from prometheus_client import Counter, Histogram
from vllm.v1.metrics.loggers import StatLoggerBase

from vllm_lladav.frontend.start_log import log_start
from vllm_lladav.model.families import is_ours
from vllm_lladav.scheduler.stats import DenoisingStats

if TYPE_CHECKING:
    from vllm.config import VllmConfig

STEP_SECONDS_BUCKETS = (
    *(0.002, 0.005, 0.01, 0.02, 0.05),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0),
)
TOKENS_PER_STEP_BUCKETS = (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 16, 32, 64)


@cache
def _collectors() -> dict[str, Any]:
    labels = ("model_name", "engine")

    def counter(name: str, text: str) -> Counter:
        return Counter(f"lladav:{name}", text, labels)

    return {
        "num_drafts": counter("denoising_steps", "Denoising steps, per request."),
        "num_draft_tokens": counter(
            "canvas_positions", "Canvas positions of all denoising steps."
        ),
        "num_accepted_tokens": counter(
            "committed_tokens", "Answer tokens that became final."
        ),
        "num_images": counter("images", "Images in admitted requests."),
        "num_images_encoded": counter(
            "images_encoded", "Images encoded: those not found in the encoder cache."
        ),
        "num_visual_tokens": counter(
            "visual_tokens", "Visual tokens in admitted requests."
        ),
        "num_visual_tokens_pruned": counter(
            "visual_tokens_pruned", "Visual tokens dropped by pruning."
        ),
        "num_kv_blocks_returned": counter(
            "kv_blocks_returned", "KV blocks that pruning gave back to the pool."
        ),
        "tokens_per_step": Histogram(
            "lladav:tokens_per_step",
            "Answer tokens per denoising step of a request that ended.",
            labels,
            buckets=TOKENS_PER_STEP_BUCKETS,
        ),
        "prune_seconds": Histogram(
            "lladav:prune_seconds",
            "Time of a request's prune points in a step, ranking included.",
            labels,
            buckets=STEP_SECONDS_BUCKETS,
        ),
        "step_seconds": Histogram(
            "lladav:denoising_step_seconds",
            "Time from scheduling an iteration to having its output.",
            labels,
            buckets=STEP_SECONDS_BUCKETS,
        ),
    }


class DenoisingStatLogger(StatLoggerBase):
    """Feeds :class:`DenoisingStats` to Prometheus; idle for other models.

    Loaded by vLLM through the entry point group ``vllm.stat_logger_plugins``.
    """

    def __init__(self, vllm_config: "VllmConfig", engine_index: int = 0) -> None:
        self._vllm_config = vllm_config
        self._is_first = engine_index == vllm_config.parallel_config.data_parallel_index
        self._model_name = vllm_config.model_config.served_model_name
        if isinstance(self._model_name, list):
            self._model_name = self._model_name[0]
        if is_ours(vllm_config.model_config):
            # Counters exist from the start, at zero.
            for collector in _collectors().values():
                collector.labels(self._model_name, str(engine_index))

    def record(
        self,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        stats = scheduler_stats and scheduler_stats.spec_decoding_stats
        if not isinstance(stats, DenoisingStats):
            return
        for name, collector in _collectors().items():
            metric = collector.labels(self._model_name, str(engine_idx))
            value = getattr(stats, name)
            if isinstance(value, list):
                for observation in value:
                    metric.observe(observation)
            else:
                metric.inc(value)

    def log_engine_initialized(self) -> None:
        """Say what is in force; once, however many engines there are."""
        if self._is_first and is_ours(self._vllm_config.model_config):
            log_start(self._vllm_config)
