# SPDX-License-Identifier: Apache-2.0
"""Denoising statistics from the engine core to the Prometheus endpoint.

Why: vLLM counts denoising steps, canvas positions and committed tokens
(``vllm:diffusion_*``, read by ``vllm bench serve``) only for models with
``canvas_length`` in their config, which also makes it refuse temperature, seed
and more; and it has no place for a plugin's own counters.
How: the ``spec_decoding_stats`` field, which carries those counts, is declared
as our subclass ``DenoisingStats``, so that its extra fields survive the way
between processes; the two vLLM loggers are told that ours are diffusion
models.
Affects: our models only; the declared type accepts what other models send.
Can go: when vLLM separates these counters from ``canvas_length``.
"""

from typing import Any

from vllm_lladav.model.families import is_ours
from vllm_lladav.patches.wrapping import wrap


def apply() -> None:
    from vllm.v1.metrics.loggers import LoggingStatLogger, PrometheusStatLogger
    from vllm.v1.metrics.stats import SchedulerStats
    from vllm.v1.spec_decode.metrics import SpecDecodingLogging

    from vllm_lladav.scheduler.stats import DenoisingStats

    SchedulerStats.__annotations__["spec_decoding_stats"] = DenoisingStats | None

    @wrap(LoggingStatLogger, "__init__")
    def init_diffusion_logging(
        init: Any, self: Any, vllm_config: Any, *args: Any, **kw: Any
    ) -> None:
        init(self, vllm_config, *args, **kw)
        if is_ours(vllm_config.model_config):
            self.spec_decoding_logging = SpecDecodingLogging(is_diffusion=True)

    @wrap(PrometheusStatLogger, "__init__")
    def init_diffusion_prometheus(
        init: Any, self: Any, vllm_config: Any, *args: Any, **kw: Any
    ) -> None:
        if is_ours(vllm_config.model_config):
            counters = type(self)._spec_decoding_cls

            def diffusion_counters(*args: Any, **kw: Any) -> Any:
                return counters(*args, **{**kw, "is_diffusion": True})

            self._spec_decoding_cls = diffusion_counters
        init(self, vllm_config, *args, **kw)
