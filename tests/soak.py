"""Many clients that stream from a server, some of which vanish in the middle of an answer."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx
from prometheus_client.parser import text_string_to_metric_families

VANISHING = 0.1
"""The part of the streams that nobody hears to the end."""
PATIENCE = 60
"""Seconds without a sign of life after which a stream is stuck."""

SHOWN = {
    "process_resident_memory_bytes": "rss",
    "talkback_workers_resident_memory_bytes": "workers",
    "process_open_fds": "files",
    "talkback_streams_running": "running",
    "talkback_streams_waiting": "waiting",
    "talkback_decoded_tokens_total": "tokens",
}


@dataclass
class Look:
    """What /metrics said at a moment; ``rss``, of the server and its workers, in MiB."""

    seconds: float
    rss: float
    files: int
    running: int
    waiting: int
    tokens: int


@dataclass
class Soak:
    """So many clients, who ask again and again until ``seconds`` are over."""

    url: str
    clients: int = 64
    seconds: float = 300
    every: float = 5
    same: bool = False
    """All ask the same, so that no prompt has a shape that the engine makes kernels for."""
    ends: Counter[str] = field(default_factory=Counter)
    """How streams ended: "whole", "vanished", "stuck", "broken" or "refused"."""
    looks: list[Look] = field(default_factory=list)

    async def run(self, seen: Callable[[Look], object] = lambda _: None) -> None:
        """Until the time is over and every client has ended."""
        self._began = time.monotonic()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.clients)
        async with httpx.AsyncClient(base_url=self.url, timeout=PATIENCE, limits=limits) as http:
            clients = [asyncio.create_task(self._client(http, n)) for n in range(self.clients)]
            while self._age() < self.seconds:
                await asyncio.sleep(self.every)
                seen(await self.look(http))
            await asyncio.gather(*clients)

    async def rest(self, seconds: float = 30) -> Look:
        """What is seen once every stream has ended, or after so many seconds."""
        due = time.monotonic() + seconds
        async with httpx.AsyncClient(base_url=self.url, timeout=PATIENCE) as http:
            while (look := await self.look(http)).running + look.waiting:
                if time.monotonic() > due:
                    break
                await asyncio.sleep(0.1)
        return look

    async def look(self, http: httpx.AsyncClient) -> Look:
        """One look at /metrics."""
        said = (await http.get("/metrics")).raise_for_status().text
        values = {
            SHOWN[sample.name]: int(sample.value)
            for family in text_string_to_metric_families(said)
            for sample in family.samples
            if sample.name in SHOWN
        }
        values["rss"] += values.pop("workers")
        look = Look(**{"seconds": self._age(), **values, "rss": values["rss"] / 2**20})
        self.looks.append(look)
        return look

    def growth(self) -> float:
        """MiB by which the second half of the looks is above the first, without the warm-up."""
        warm = [look.rss for look in self.looks[len(self.looks) // 5 :]]
        half = len(warm) // 2
        return sum(warm[half:]) / len(warm[half:]) - sum(warm[:half]) / len(warm[:half])

    def _age(self) -> float:
        return time.monotonic() - self._began

    async def _client(self, http: httpx.AsyncClient, number: int) -> None:
        chance = random.Random(number)
        while self._age() < self.seconds:
            try:
                end = await self._stream(http, number, chance)
            except httpx.TimeoutException:
                end = "stuck"
            except httpx.TransportError:
                end = "broken"
            self.ends[end] += 1
            if end in ("refused", "broken"):
                await asyncio.sleep(0.2)

    async def _stream(self, http: httpx.AsyncClient, number: int, chance: random.Random) -> str:
        question = "Question" if self.same else f"Question {chance.random()}"
        body = {
            "messages": [{"role": "user", "content": question}],
            "max_tokens": chance.randint(16, 192), "temperature": 1, "stream": True,
            "user": f"client-{number}",
        }  # fmt: skip
        leaves_after = chance.randint(2, 12) if chance.random() < VANISHING else 10**9
        last = ""
        async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code == 429:
                return "refused"
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                last, leaves_after = line or last, leaves_after - bool(line)
                if leaves_after == 0:
                    return "vanished"
        return "whole" if last == "data: [DONE]" else "broken"
