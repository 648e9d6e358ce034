# SPDX-License-Identifier: Apache-2.0
"""Channels from the engine to the clients of this process that watch their canvas."""

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any

from vllm_lladav.denoising.frame import SHOWN_KEY, Shown

CHANNELS: dict[int, "Channel"] = {}
"""By number; a client can neither choose nor guess one."""


class Channel(asyncio.Queue[Any]):
    """What a client is to be shown, in order: frames (:class:`Shown`), and what others
    put there. As long as a request at most, since nobody waits for a slow client."""

    def __init__(self) -> None:
        super().__init__()
        self.number = secrets.randbits(62)
        CHANNELS[self.number] = self

    def close(self) -> None:
        """What comes later is dropped."""
        CHANNELS.pop(self.number, None)


def take_shown(outputs: Sequence[Any]) -> Sequence[Any]:
    """Put the frames among the engine's outputs into their channels.

    Returns:
        The outputs (vLLM's ``EngineCoreOutput``) as if there were no frames.
    """
    if not CHANNELS:
        return outputs
    return [output for output in outputs if not _is_only_shown(output)]


def _is_only_shown(output: Any) -> bool:
    """Whether nothing is left of an output without its frame, which goes out."""
    params = output.kv_transfer_params
    if params is None or SHOWN_KEY not in params:
        return False
    shown = Shown(*params.pop(SHOWN_KEY))
    output.kv_transfer_params = params or None
    channel = CHANNELS.get(shown.channel)
    if channel is not None:
        channel.put_nowait(shown)
    return not output.new_token_ids and output.finish_reason is None
