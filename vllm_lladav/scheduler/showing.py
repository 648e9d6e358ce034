# SPDX-License-Identifier: Apache-2.0
"""Frames on their way from the workers to the clients that watch their canvas."""

from collections.abc import Mapping
from typing import Any

from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from vllm_lladav.denoising.frame import SHOWN_KEY, Frame, Shown
from vllm_lladav.denoising.params import channel_of, denoising_params

MOST_IMAGE_NUMBERS = 4
"""Of a field of an image that goes along: sizes do, pixels do not."""


class Showing:
    """What became visible in an iteration, until its outputs are made.

    A preempted request starts its canvas again, and so do its frames.
    """

    def __init__(self) -> None:
        self._begun: set[str] = set()
        self._shown: list[tuple[Request, Shown]] = []

    def take(self, requests: Mapping[str, Request], output: ModelRunnerOutput) -> None:
        """Take the workers' frames out of the field that they travel in."""
        if output.num_nans_in_logits is None:
            return
        # As many as there are frames, whatever requests vLLM takes them for.
        rows: list[Any] = list(output.num_nans_in_logits.values())
        output.num_nans_in_logits = None
        for row in rows:
            request = requests.get(output.req_ids[row[0]])
            frame = Frame.of_row(row)
            if request is None or request.num_stale_output_tokens or frame is None:
                continue
            channel = channel_of(request.sampling_params)
            assert channel is not None
            is_first = request.request_id not in self._begun
            self._begun.add(request.request_id)
            start = _start_of(request) if is_first else None
            self._shown.append((request, Shown(channel, list(frame), start)))

    def add_to(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        """Give the frames to the outputs of their requests, or to some of their own."""
        all_shown, self._shown = self._shown, []
        for request, shown in all_shown:
            group = outputs.setdefault(request.client_index, EngineCoreOutputs())
            found = [o for o in group.outputs if o.request_id == request.request_id]
            if not found:
                found = [EngineCoreOutput(request.request_id, new_token_ids=[])]
                group.outputs += found
            params = found[0].kv_transfer_params or {}
            found[0].kv_transfer_params = {**params, SHOWN_KEY: list(shown)}

    def forget(self, request_id: str) -> None:
        """The request is gone."""
        self._begun.discard(request_id)


def _start_of(request: Request) -> dict[str, Any]:
    """What is known of a request before its first step, as plain values."""
    images = request.mm_features
    return {
        "params": denoising_params(request.sampling_params).to_values(),
        "prompt_len": request.num_prompt_tokens,
        "offsets": [image.mm_position.offset for image in images],
        "lengths": [image.mm_position.length for image in images],
        "images": [_numbers_of(image.data) for image in images],
    }


def _numbers_of(image: Any) -> dict[str, list[float]]:
    """The small fields of a processed image, by their names."""
    fields = {} if image is None else image.get_data()
    return {
        name: value.flatten().tolist()
        for name, value in fields.items()
        if hasattr(value, "numel") and value.numel() <= MOST_IMAGE_NUMBERS
    }
