# SPDX-License-Identifier: Apache-2.0
"""Model Runner V2 is chosen on a CPU without Triton, for our models.

Why: vLLM refuses it there, since its kernels are missing; ``cpu_kernels.py`` has
others.
How: lifts the check in ``vllm.config.vllm``, and wraps
``VllmConfig._get_v2_model_runner_unsupported_features``. Ignores a warning about an
attribute of torch that nobody uses: where kernels are replaced, vLLM reads every
attribute of every module.
Affects: nothing; it would become the default of all models, and others than ours, which
reach kernels that have no stand-in here, are told that it is not supported.
Can go: when vLLM's CPU build brings these kernels or a Triton.
"""

import warnings
from typing import Any

from vllm_lladav.model.families import is_ours
from vllm_lladav.patches.wrapping import wrap


def apply() -> None:
    from vllm.platforms import current_platform
    from vllm.triton_utils import HAS_TRITON

    if not current_platform.is_cpu() or HAS_TRITON:
        return
    deprecated = "`torch.distributed.reduce_op` is deprecated"
    warnings.filterwarnings("ignore", deprecated, FutureWarning)
    import vllm.config.vllm as config_module
    from vllm.config import VllmConfig

    @wrap(VllmConfig, "_get_v2_model_runner_unsupported_features")
    def with_missing_kernels(unsupported_features: Any, self: Any) -> list[str]:
        unsupported = unsupported_features(self)
        if not is_ours(self.model_config):
            unsupported = [*unsupported, "this model on a CPU without Triton"]
        return unsupported

    config_module.HAS_TRITON = True
