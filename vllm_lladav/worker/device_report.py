# SPDX-License-Identifier: Apache-2.0
"""Numbers on their way from the device to the host."""

import numpy as np
import torch


class DeviceReport:
    """Copies ``numbers`` to the host without waiting for them.

    Args:
        numbers: of any shape and dtype.
    """

    def __init__(self, numbers: torch.Tensor) -> None:
        self._numbers = numbers.to("cpu", non_blocking=True)
        self._event: torch.cuda.Event | None = None
        if numbers.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record()

    def read(self) -> np.ndarray:
        """The numbers; waits until they are here."""
        if self._event is not None:
            self._event.synchronize()
        return self._numbers.numpy()
