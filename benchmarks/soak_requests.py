# SPDX-License-Identifier: Apache-2.0
"""What ``soak.py`` sends: requests of all kinds, also ones that must be refused, also
from clients that go away."""

import asyncio
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import aiohttp
from server import CHAT, chat_body

MODEL = "lladav-tiny"
REQUEST_SECONDS = 600
LEAVE_SECONDS = 1.5
DEADLINE_SECONDS = 3.0
DEADLINE_SHARE = 0.04
MOST_FAILURES = 200
"""After so many, nothing more is sent: the server is gone, or as good as gone."""

# Share of the requests, and fields of their bodies.
KINDS: dict[str, tuple[int, dict[str, Any]]] = {
    "exact": (3, {"vllm_xargs": {"denoising": "exact", "prune_rate": 0}}),
    "fast": (3, {"vllm_xargs": {"denoising": "fast", "prune_rate": 0}}),
    "pruned": (3, {"vllm_xargs": {"denoising": "exact", "prune_rate": 0.75}}),
    "fast+pruned": (3, {"vllm_xargs": {"denoising": "fast", "prune_rate": 0.75}}),
    "prompt cache": (2, {"vllm_xargs": {"cache": "prompt", "prune_rate": 0}}),
    "guided": (1, {"vllm_xargs": {"cfg_scale": 0.5, "prune_rate": 0}}),
    "guided+pruned": (1, {"vllm_xargs": {"cfg_scale": 0.5, "prune_rate": 0.5}}),
    "sampled": (1, {"temperature": 0.7, "vllm_xargs": {"prune_rate": 0}}),
    "logprobs": (1, {"logprobs": True, "vllm_xargs": {"prune_rate": 0}}),
}

BROKEN_PNG = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAA"

# Fields that make a request one that must be refused.
REFUSED: dict[str, dict[str, Any]] = {
    "unknown option": {"vllm_xargs": {"stepz": 4}},
    "no steps": {"vllm_xargs": {"steps": 0}},
    "endless canvas": {"vllm_xargs": {"gen_length": 10**9}},
    "prune rate not a number": {"vllm_xargs": {"prune_rate": float("nan")}},
    "suffix too long": {"vllm_xargs": {"generation_suffix": "x" * 100_000}},
    "temperature": {"temperature": -1},
    "max_tokens": {"max_tokens": -1},
    "json schema": {"response_format": {"type": "json_object"}},
    "no messages": {"messages": []},
    "prompt too long": {"messages": [{"role": "user", "content": "word " * 20_000}]},
    "broken picture": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": BROKEN_PNG}}],
            }
        ]
    },
    "unknown model": {"model": "another"},
}

KIND_OF_REFUSED = "refused"
STATES = ("answered", "refused", "left", "late", "failed")
JSON = {"Content-Type": "application/json"}
"""For bodies in which numbers are not finite."""


@dataclass(frozen=True)
class Planned:
    """One request.

    Attributes:
        kind: of ``KINDS``, or ``KIND_OF_REFUSED``.
        leave_after: s after which the client hangs up, if at all.
        upload: how much of the body the client sends before it does, a share.
    """

    number: int
    kind: str
    fields: dict[str, Any]
    leave_after: float | None = None
    upload: float = 1


@dataclass(frozen=True)
class Outcome:
    """What became of a request: one of ``STATES`` (late: its deadline passed, which the
    server said), failed for a ``reason``."""

    kind: str
    state: str
    seconds: float
    reason: str = ""


def plan(number: int, seed: int, leave_share: float, refused_share: float) -> Planned:
    """The same for the same arguments."""
    rng = random.Random(f"{seed} {number}")
    if rng.random() < refused_share:
        name = rng.choice(list(REFUSED))
        fields = {"max_tokens": 16, "stream": rng.random() < 0.5, **REFUSED[name]}
        return Planned(number, KIND_OF_REFUSED, fields)
    weights = [weight for weight, _ in KINDS.values()]
    kind = rng.choices(list(KINDS), weights)[0]
    leaves = rng.random() < leave_share
    fields = dict(KINDS[kind][1])
    if rng.random() < DEADLINE_SHARE:
        deadline = rng.uniform(0.01, DEADLINE_SECONDS)
        fields["vllm_xargs"] = {**fields["vllm_xargs"], "deadline_seconds": deadline}
    return Planned(
        number=number,
        kind=kind,
        fields={
            "stream": rng.random() < 0.5,
            "max_tokens": rng.choice((16, 32, 32, 48)),
            **fields,
        },
        leave_after=rng.uniform(0, LEAVE_SECONDS) if leaves else None,
        upload=rng.choice((1, 1, 1, rng.random())) if leaves else 1,
    )


def plans(
    count: int | None, seconds: float | None, *, seed: int, **shares: float
) -> Iterator[Planned]:
    """As many, or as many as are asked for in this time."""
    deadline = time.monotonic() + seconds if seconds is not None else None
    number = 0
    while number != count and (deadline is None or time.monotonic() < deadline):
        yield plan(number, seed, **shares)
        number += 1


class HttpError(Exception):
    """A response that is no answer; the status may be that of an error in a stream."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message[:200]}")
        self.status = status


def streamed_text(lines: Sequence[str]) -> str:
    """The answer in server-sent events; raises if they do not end as they should."""
    text = ""
    for line in lines:
        data = line.removeprefix("data:").strip()
        if line.startswith("data:") and data != "[DONE]":
            event = json.loads(data)
            if "error" in event:
                raise HttpError(event["error"]["code"], event["error"]["message"])
            for choice in event.get("choices", ()):
                text += choice["delta"].get("content") or ""
    if not any(line.strip() == "data: [DONE]" for line in lines):
        raise ValueError("the stream broke off")
    return text


async def answer(session: aiohttp.ClientSession, body: dict[str, Any]) -> str:
    """The text; raises what goes wrong."""
    async with session.post(CHAT, json=body) as response:
        text = await response.text()
        if response.status != 200:
            raise HttpError(response.status, text)
    if body.get("stream"):
        return streamed_text(text.splitlines())
    return json.loads(text)["choices"][0]["message"]["content"] or ""


async def refusal(session: aiohttp.ClientSession, body: dict[str, Any]) -> str:
    """The message of the error; raises if the request is not refused."""
    async with session.post(CHAT, data=json.dumps(body), headers=JSON) as response:
        text = await response.text()
        if response.status not in (400, 404):
            raise HttpError(response.status, f"to what must be refused: {text}")
    return json.loads(text)["error"]["message"]


async def leave_in_upload(url: str, body: dict[str, Any], share: float) -> None:
    """Connect, send a part of a request, and close the connection."""
    host, port = url.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    content = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content[: int(share * len(content))])
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.close()


class Client:
    """Sends requests about pictures.

    Args:
        url: of the server.
        questions: ``question`` and ``png`` of each; they come round.
    """

    def __init__(self, url: str, questions: Sequence[dict[str, Any]]) -> None:
        self._url, self._questions = url, questions

    def session(self) -> aiohttp.ClientSession:
        # Leaving closes the connection, which is how the server learns of it.
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        return aiohttp.ClientSession(self._url, connector=connector, timeout=timeout)

    def body(self, number: int, fields: dict[str, Any]) -> dict[str, Any]:
        question = self._questions[number % len(self._questions)]
        return chat_body(MODEL, question["png"], question["question"]) | fields

    async def send(self, session: aiohttp.ClientSession, planned: Planned) -> Outcome:
        """Never raises for what the server does."""
        start = time.monotonic()
        state, reason = "failed", ""
        try:
            async with asyncio.timeout(planned.leave_after or REQUEST_SECONDS):
                state = await self._send(session, planned)
        except TimeoutError:
            if planned.leave_after is not None:
                state = "left"
            reason = f"no answer within {REQUEST_SECONDS} s"
        except HttpError as error:
            has_deadline = "deadline_seconds" in planned.fields.get("vllm_xargs", ())
            if error.status == HTTPStatus.GATEWAY_TIMEOUT and has_deadline:
                state = "late"
            reason = str(error)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            reason = repr(error)
        except (KeyError, IndexError, TypeError) as error:
            reason = f"a response of another form: {error!r}"
        seconds = time.monotonic() - start
        return Outcome(
            planned.kind, state, seconds, reason if state == "failed" else ""
        )

    async def _send(self, session: aiohttp.ClientSession, planned: Planned) -> str:
        body = self.body(planned.number, planned.fields)
        if planned.kind == KIND_OF_REFUSED:
            await refusal(session, body)
            return "refused"
        if planned.upload < 1:
            await leave_in_upload(self._url, body, planned.upload)
            return "left"
        if not (await answer(session, body)).strip():
            raise ValueError("no text")
        return "answered"

    async def send_all(
        self, todo: Iterator[Planned], slots: int, report: int = 200
    ) -> list[Outcome]:
        """All of them, ``slots`` at any time; fewer where ``MOST_FAILURES`` fail."""
        outcomes: list[Outcome] = []

        async def work(session: aiohttp.ClientSession) -> None:
            failed = 0
            for planned in todo:
                outcomes.append(await self.send(session, planned))
                if len(outcomes) % report == 0:
                    print(f"  {len(outcomes)} requests", flush=True)
                    failed = sum(outcome.state == "failed" for outcome in outcomes)
                if failed > MOST_FAILURES:
                    return

        async with self.session() as session:
            await asyncio.gather(*(work(session) for _ in range(slots)))
        return outcomes
