# SPDX-License-Identifier: Apache-2.0
"""A client that watches a canvas."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import requests

from tests.golden.cases import GoldenCase
from tests.server.client import chat_fields

Event = dict[str, Any]


@dataclass
class Watched:
    """What came of one streamed chat completion.

    Attributes:
        token_ids: of its choice, in the order of the stream.
        events: of its canvas, in order.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    finish_reason: str | None = None

    def of(self, name: str) -> list[Event]:
        return [event for event in self.events if event["event"] == name]

    @property
    def start(self) -> Event:
        (event,) = self.of("start")
        return event

    @property
    def steps(self) -> list[Event]:
        return self.of("step")

    @property
    def end(self) -> Event:
        (event,) = self.of("end")
        return event

    def transfers(self) -> list[dict[int, tuple[int, float | None]]]:
        """Token and confidence by position, of every step."""
        return [
            {
                one["position"]: (one["token_id"], one["confidence"])
                for one in step["unmasked"]
            }
            for step in self.steps
        ]

    def replayed(self) -> list[int]:
        """The answer that the events tell, which unmask no position twice."""
        start, canvas = self.start["canvas"], dict[int, int]()
        for transfers in self.transfers():
            assert canvas.keys().isdisjoint(transfers)
            canvas |= {place: token_id for place, (token_id, _) in transfers.items()}
        places = range(self.end["answer_tokens"])
        # Some end with masks: those of a prompt may take their steps.
        answer = [canvas.get(place, start["mask_token_id"]) for place in places]
        return answer + start["suffix"]


def body_of(case: GoldenCase, watches: bool = True, **xargs: Any) -> dict[str, Any]:
    """JSON of a streamed chat completion."""
    fields = chat_fields(case)
    body = {**fields, **fields.pop("extra_body"), "stream": True}
    del body["extra_body"]
    asked = {"live_canvas": 1} if watches else {}
    return {**body, "vllm_xargs": {**body["vllm_xargs"], **asked, **xargs}}


def chunks_of(response: requests.Response) -> Iterator[dict[str, Any]]:
    assert response.status_code == 200, response.text
    for line in response.iter_lines():
        if line.startswith(b"data: {"):
            yield json.loads(line.removeprefix(b"data: "))
    assert line == b"" or line == b"data: [DONE]"


def watch(url: str, body: dict[str, Any]) -> Watched:
    """Send a request and read all that comes."""
    watched = Watched()
    url = f"{url}/v1/chat/completions"
    with requests.post(url, json=body, stream=True, timeout=120) as response:
        for chunk in chunks_of(response):
            if event := chunk.get("lladav"):
                assert chunk["choices"] == []
                watched.events.append(event)
                continue
            (choice,) = chunk["choices"]
            watched.text += choice["delta"].get("content") or ""
            watched.token_ids += choice.get("token_ids") or []
            watched.finish_reason = choice["finish_reason"]
    return watched
