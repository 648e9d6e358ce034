# SPDX-License-Identifier: Apache-2.0
"""Values of the host for tensors of the device."""

from typing import Any

import torch


def to_device(
    values: Any, device: torch.device, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """What ``torch.tensor`` makes of ``values``, without waiting for the device: a copy
    from memory that is not pinned would wait for all that is queued."""
    is_pinned = device.type == "cuda"
    tensor = torch.tensor(values, dtype=dtype, pin_memory=is_pinned)
    return tensor.to(device, non_blocking=True)
