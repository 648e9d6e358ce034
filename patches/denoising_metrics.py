# SPDX-License-Identifier: Apache-2.0
"""Denoising statistics from the engine core to the Prometheus endpoint.

Why: vLLM counts denoising steps, canvas positions and committed tokens
(``vllm:diffusion_*``, read by ``vllm bench serve``) only for models with
``canvas_length`` in their config, which also makes it refuse temperature, seed
and more; and it has no place for a plugin's own counters.
How: the ``spec_decoding_stats`` field, which carries those counts, is declared
as our subclass ``DenoisingStats``, so that its extra fields survive the way
between processes; the two vLLM loggers are told that LLaDA-V is a diffusion
model.
Affects: LLaDA-V only; the declared type accepts what other models send.
Can go: when vLLM separates these counters from ``canvas_length``.
"""

import functools
from typing import Any


def apply() -> None:
    from vllm.v1.metrics.loggers import LoggingStatLogger, PrometheusStatLogger
    from vllm.v1.metrics.stats import SchedulerStats
    from vllm.v1.spec_decode.metrics import SpecDecodingLogging

    from vllm_lladav.model.lladav.config import ARCHITECTURE
    from vllm_lladav.scheduler.stats import DenoisingStats

    declared = DenoisingStats | None
    if SchedulerStats.__annotations__["spec_decoding_stats"] == declared:
        return
    SchedulerStats.__annotations__["spec_decoding_stats"] = declared

    init_logging = LoggingStatLogger.__init__
    init_prometheus = PrometheusStatLogger.__init__

    @functools.wraps(init_logging)
    def init_diffusion_logging(
        self: Any, vllm_config: Any, *args: Any, **kw: Any
    ) -> None:
        init_logging(self, vllm_config, *args, **kw)
        if vllm_config.model_config.architecture == ARCHITECTURE:
            self.spec_decoding_logging = SpecDecodingLogging(is_diffusion=True)

    @functools.wraps(init_prometheus)
    def init_diffusion_prometheus(
        self: Any, vllm_config: Any, *args: Any, **kw: Any
    ) -> None:
        if vllm_config.model_config.architecture == ARCHITECTURE:
            counters = type(self)._spec_decoding_cls

            def diffusion_counters(*args: Any, **kw: Any) -> Any:
                return counters(*args, **{**kw, "is_diffusion": True})

            self._spec_decoding_cls = diffusion_counters
        init_prometheus(self, vllm_config, *args, **kw)

    LoggingStatLogger.__init__ = init_diffusion_logging
    PrometheusStatLogger.__init__ = init_diffusion_prometheus
