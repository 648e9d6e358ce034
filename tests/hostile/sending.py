# SPDX-License-Identifier: Apache-2.0
"""Sends hostile requests, many at once, among valid ones, and watches the server."""

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import psutil

from tests.golden.cases import DIRECTORY
from tests.hostile.grammar import CHAT, JSON, Grammar, Hostile
from tests.hostile.judging import fault_of
from tests.server.client import Json, small_chat, user_message

IN_FLIGHT = 16
VALID_EVERY = 8
"""Of so many requests, one is a small valid one, whose answer is known."""

HANG_SECONDS = 60
HEALTH_SECONDS = 1
POLL_SECONDS = 0.25

MEMORY_GROWTH = 0.1
"""From the third quarter of a run to the last."""

MIB = 1 << 20

IDLE = (
    *("vllm:num_requests_running", "vllm:num_requests_waiting"),
    "vllm:kv_cache_usage_perc",
)
"""Gauges that are 0 when nobody asks anything."""
RECEIVED = "lladav:requests_received_total"
ENDED = "lladav:requests_ended_total"
"""Counters, which are equal then."""


@dataclass
class Seen:
    """What a run has seen.

    Attributes:
        answers: how often each kind of request got each status; 0 stands for a client
            that went away, -1 for a connection that broke.
        faults: of request numbers, what was wrong with their answers; those of no
            request have the number -1.
        slowest: request that took longest, and its seconds.
        health: seconds of every answer of ``/health``, which are infinite for none.
        beside_worst_health: requests that were under way, or began, during the slowest.
        memory: seconds since the start, and bytes of all processes of the server.
    """

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    faults: list[tuple[int, str]] = field(default_factory=list)
    slowest: tuple[int, float] = (-1, 0.0)
    health: list[float] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)
    beside_worst_health: set[int] = field(default_factory=set)
    num_valid: int = 0
    seconds: float = 0.0

    def blame(self, number: int, fault: str) -> None:
        self.faults.append((number, fault))

    @property
    def worst_health(self) -> float:
        return max(self.health, default=0.0)

    @property
    def memory_growth(self) -> float:
        """From the third quarter of the run to the last, as a share.

        The least of each: what a request holds while it runs is no growth.
        """
        quarter = len(self.memory) // 4
        if not quarter:
            return 0.0
        sizes = [size for _, size in self.memory]
        third, last = sizes[2 * quarter : 3 * quarter], sizes[3 * quarter :]
        return min(last) / min(third) - 1


class Run:
    """A run of hostile requests against a running server.

    Args:
        url: of the server.
        pid: of its first process.
        grammar: that makes the requests.
        health_seconds: that ``/health`` may take.
    """

    def __init__(
        self,
        url: str,
        pid: int,
        grammar: Grammar,
        health_seconds: float = HEALTH_SECONDS,
    ) -> None:
        self._health_seconds = health_seconds
        self._url = url
        self._pid = pid
        self._grammar = grammar
        self._valid = _valid_bodies()
        self._known: list[list[int]] = []
        self._under_way: set[int] = set()
        self._beside: set[int] = set()
        self.seen = Seen()

    async def run(self, numbers: list[int]) -> Seen:
        # A server may close a connection after a bad request: none is used again.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=HANG_SECONDS)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, skip_auto_headers=["Content-Type"]
        ) as self._session:
            self._known = [await self._tokens(body) for body in self._valid]
            self._start = time.monotonic()
            watching = asyncio.create_task(self._watch())
            waiting = list(reversed(numbers))
            await asyncio.gather(*(self._work(waiting) for _ in range(IN_FLIGHT)))
            self.seen.seconds = time.monotonic() - self._start
            watching.cancel()
            await self._check_end()
        return self.seen

    async def _work(self, waiting: list[int]) -> None:
        while waiting:
            number = waiting.pop()
            if number % VALID_EVERY == 0:
                await self._check_valid(number)
            await self._send(self._grammar.request(number))

    async def _send(self, request: Hostile) -> None:
        begin = time.monotonic()
        status, fault = 0, None
        self._under_way.add(request.number)
        self._beside.add(request.number)
        try:
            async with asyncio.timeout(request.leave_after):
                status, body = await self._ask(request)
                fault = fault_of(request, status, body)
                if request.is_canceled and status == 200:
                    await self._cancel(body)
        except TimeoutError:
            if request.leave_after is None:
                fault = f"no answer in {HANG_SECONDS} s"
        except aiohttp.ClientError as error:
            status, fault = -1, f"{type(error).__name__}: {error}"
        self._under_way.discard(request.number)
        seconds = time.monotonic() - begin
        self.seen.answers[request.kind, status] += 1
        if seconds > self.seen.slowest[1]:
            self.seen.slowest = (request.number, seconds)
        if fault is not None:
            self.seen.blame(request.number, fault)

    async def _ask(self, request: Hostile) -> tuple[int, bytes]:
        async with self._session.request(
            request.method,
            self._url + request.path,
            data=request.body,
            headers=request.headers,
        ) as response:
            return response.status, await response.read()

    async def _cancel(self, body: bytes) -> None:
        try:
            response_id = json.loads(body)["id"]
        except ValueError:
            return  # A stream.
        url = f"{self._url}/v1/responses/{response_id}/cancel"
        async with self._session.post(url) as response:
            await response.read()

    async def _tokens(self, body: Json) -> list[int]:
        async with self._session.post(
            self._url + CHAT, data=json.dumps(body), headers=JSON
        ) as response:
            answer = await response.json()
        tokens: list[int] = answer["choices"][0]["token_ids"]
        return tokens

    async def _check_valid(self, number: int) -> None:
        """One of the valid requests has its answer, whatever else goes on."""
        which = number // VALID_EVERY % len(self._valid)
        self.seen.num_valid += 1
        try:
            found: Any = await self._tokens(self._valid[which])
        except (aiohttp.ClientError, TimeoutError, ValueError, LookupError) as error:
            found = repr(error)
        if found != self._known[which]:
            fault = f"beside it, valid request {which} got {found}"
            self.seen.blame(number, fault)

    async def _watch(self) -> None:
        """Ask for the health, and measure the memory, all the while."""
        while True:
            begin = time.monotonic()
            self._beside = set(self._under_way)
            try:
                async with self._session.get(f"{self._url}/health") as response:
                    is_healthy = response.status == 200
            except (aiohttp.ClientError, TimeoutError):
                is_healthy = False
            seconds = time.monotonic() - begin
            if seconds > self.seen.worst_health:
                self.seen.beside_worst_health = self._beside
            self.seen.health.append(seconds if is_healthy else float("inf"))
            self.seen.memory.append((begin - self._start, memory_of(self._pid)))
            await asyncio.sleep(POLL_SECONDS)

    async def _check_end(self) -> None:
        """Nothing is left, and the answers are what they were."""
        if self.seen.worst_health > self._health_seconds:
            beside = ", ".join(map(str, sorted(self.seen.beside_worst_health)))
            fault = f"/health took {self.seen.worst_health:.2f} s beside {beside}"
            self.seen.blame(-1, fault)
        if self.seen.memory_growth > MEMORY_GROWTH:
            self.seen.blame(-1, f"memory grew by {self.seen.memory_growth:.1%}")
        for _ in range(int(HANG_SECONDS / POLL_SECONDS)):
            left = await self._left()
            if not any(left.values()):
                break
            await asyncio.sleep(POLL_SECONDS)
        else:
            self.seen.blame(-1, f"left behind: {left}")
        for which in range(len(self._valid)):
            await self._check_valid(which * VALID_EVERY)

    async def _left(self) -> dict[str, float]:
        async with self._session.get(f"{self._url}/metrics") as response:
            lines = (await response.text()).splitlines()
        values = {
            name: float(value)
            for name, _, value in (line.rpartition(" ") for line in lines)
            if name and not name.startswith("#")
        }

        def total(prefix: str) -> float:
            return sum(
                value for name, value in values.items() if name.startswith(prefix)
            )

        left = {name: value for name, value in values.items() if name.startswith(IDLE)}
        left["requests without an outcome"] = total(RECEIVED) - total(ENDED)
        return left


def memory_of(pid: int) -> int:
    """Resident bytes of a process and all below it."""
    first = psutil.Process(pid)
    size = 0
    for process in (first, *first.children(recursive=True)):
        try:
            size += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return size


def _valid_bodies() -> list[Json]:
    small = {"return_token_ids": True, "ignore_eos": True}
    picture = DIRECTORY / "images" / "square200.png"
    shown = [user_message("w5", picture)]
    blocks = {"gen_length": 16, "block_length": 8, "steps": 8}
    return [
        small_chat(**small),
        small_chat(**small, vllm_xargs=blocks),
        small_chat(**small, vllm_xargs={**blocks, "cache": "dual"}),
        small_chat(**small, messages=shown),
        small_chat(**small, messages=shown, vllm_xargs={**blocks, "prune_rate": 0.75}),
    ]
