# SPDX-License-Identifier: Apache-2.0
"""Who may watch: streamed chat completions that ask for it, of a server that lets
them."""

from typing import Any

from vllm.exceptions import VLLMValidationError

from vllm_lladav.options.kinds import Integer, OptionError
from vllm_lladav.options.options import ServerOptions

NAME = "live_canvas"
"""In ``vllm_xargs``: 1 to watch, 0 not to."""

_KIND = Integer(least=0, most=1)


class ChannelNumber(int):
    """A ``live_canvas`` that the server opened a channel for. None comes as JSON."""


def take_channel(params: Any, server: ServerOptions) -> int | None:
    """The number of the channel of a request; None if it does not watch.

    Args:
        params: the request's own copy of vLLM's sampling parameters, which lose
            ``live_canvas``.

    Raises:
        VLLMValidationError: it cannot watch.
    """
    sent = dict(params.extra_args or {})
    if NAME not in sent:
        return None
    value = sent.pop(NAME)
    params.extra_args = sent
    if isinstance(value, ChannelNumber):
        number = int(value)
    elif value is None or not _checked(value):
        return None
    else:
        number = 0
    if server.live_canvas != "on":
        raise _refused("a server that runs with --live-canvas on")
    if not number:
        raise _refused("a chat completion with stream: true and n: 1")
    return number


def is_asked(values: Any) -> bool:
    """Whether ``vllm_xargs`` ask for it, as far as they are valid."""
    sent = (values or {}).get(NAME)
    return isinstance(sent, int | float) and sent == 1


def _checked(value: object) -> int:
    try:
        # Some write true.
        return _KIND.check(NAME, int(value) if isinstance(value, bool) else value)
    except OptionError as error:
        raise VLLMValidationError(str(error), parameter=NAME) from None


def _refused(needed: str) -> VLLMValidationError:
    return VLLMValidationError(f"{NAME} needs {needed}", parameter=NAME)
