# SPDX-License-Identifier: Apache-2.0
"""What an API server is doing for its clients, shared by all who need to know."""

from dataclasses import dataclass, field
from typing import Any

from vllm_lladav.server.pace import Pace


@dataclass
class Traffic:
    """Of one API server process.

    Attributes:
        in_flight: requests that came and have no complete answer yet.
        is_draining: the server is about to end and takes no more requests.
        is_overdue: the engine has not got on for too long.
        pace: of its answers.
    """

    in_flight: int = 0
    is_draining: bool = False
    is_overdue: bool = False
    pace: Pace = field(default_factory=Pace)


def traffic_of(engine: Any) -> Traffic:
    """The traffic of vLLM's engine client, which exists once per API server."""
    if not hasattr(engine, "lladav_traffic"):
        engine.lladav_traffic = Traffic()
    traffic: Traffic = engine.lladav_traffic
    return traffic


def num_slots(vllm_config: Any) -> int:
    """Requests that run at once, in all engines."""
    ranks: int = vllm_config.parallel_config.data_parallel_size
    slots: int = ranks * vllm_config.scheduler_config.max_num_seqs
    return slots
