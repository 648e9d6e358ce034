# SPDX-License-Identifier: Apache-2.0
"""Answers that must stay what they were: greedy requests, asked again and again."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from server import CHAT
from soak_requests import KINDS, Client

NOT_GREEDY = ("sampled",)
PER_KIND = 2


@dataclass
class Drift:
    """What asking again gave.

    Attributes:
        asked: how many answers were compared with the first ones.
        changed: what differed, or was not answered at all.
    """

    asked: int = 0
    changed: list[dict[str, Any]] = field(default_factory=list)


class Watch:
    """A fixed set of requests, two of each greedy kind."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._kinds = [kind for kind in KINDS if kind not in NOT_GREEDY] * PER_KIND
        self._first: list[list[int]] = []
        self.drift = Drift()

    async def _ask(self, session: aiohttp.ClientSession, number: int) -> list[int]:
        fields = {"max_tokens": 32, "return_token_ids": True}
        fields |= KINDS[self._kinds[number]][1]
        async with session.post(CHAT, json=self._client.body(number, fields)) as got:
            got.raise_for_status()
            tokens: list[int] = (await got.json())["choices"][0]["token_ids"]
            return tokens

    async def learn(self) -> None:
        """Ask for the first time, one at a time; raises what goes wrong."""
        async with self._client.session() as session:
            for number in range(len(self._kinds)):
                self._first.append(await self._ask(session, number))

    async def repeat(self, interval: float) -> None:
        """Ask again, one at a time, every ``interval`` seconds until cancelled."""
        start = time.monotonic()
        async with self._client.session() as session:
            while True:
                await asyncio.sleep(interval)
                for number in range(len(self._kinds)):
                    await self._compare(session, number, time.monotonic() - start)

    async def _compare(
        self, session: aiohttp.ClientSession, number: int, seconds: float
    ) -> None:
        first = self._first[number]
        row: dict[str, Any] = {"number": number, "kind": self._kinds[number]}
        try:
            tokens = await self._ask(session, number)
        except (aiohttp.ClientError, KeyError, ValueError) as error:
            row |= {"error": repr(error)}
        else:
            row |= {"first": first, "now": tokens}
        self.drift.asked += 1
        if row.get("now") != first:
            self.drift.changed.append({**row, "seconds": seconds})
