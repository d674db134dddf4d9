"""The replicas together: which of them are well, what each must have loaded, and whom to ask.

Everything here runs on the thread of the engine's event loop.
"""

import asyncio
import logging
from typing import Any

from chatbot.engine.protocol import BASE, EngineError, UnreachableError
from chatbot.engine.remote.replica import Replica, ReplicaError, address, client
from chatbot.engine.settings import RemoteSettings
from chatbot.model.lora import AdapterError

log = logging.getLogger("talkback")


class Fleet:
    """Replicas of one base. An adapter is loaded on every one that is up, or on none.

    ``model`` is the base's name on the servers, ``room`` the most tokens that all of them take
    (None: they do not say), ``paths`` the adapters that they must have -> where they see them.
    """

    def __init__(self, settings: RemoteSettings) -> None:
        if not settings.urls:
            raise EngineError("[engine] names no urls. Write where vLLM runs, or kind = 'torch'.")
        self.model = settings.model
        self.room: int | None = None
        self.paths: dict[str, str] = {}
        urls = dict.fromkeys(address(url) for url in settings.urls)
        self._http = client(settings)
        self.replicas = [Replica(url, self._http) for url in urls]
        self._changing = asyncio.Lock()

    async def close(self) -> None:
        """Hang up; what the replicas have loaded stays, others may use it."""
        await self._http.aclose()

    # -- Whom to ask

    def best(self, adapter: str, chances: dict[Replica, int]) -> Replica | None:
        """The replica with the fewest requests of those that have a chance and are able.

        One that should have the adapter and at this moment has not (another process unloaded it)
        is able too, if no other is: it says that it lacks it, and is given it then.
        """
        name = self.name(adapter)
        able = [r for r, left in chances.items() if left and not r.trouble]
        having = [r for r in able if name in r.loaded]
        lacking = [r for r in able if adapter in self.paths and adapter not in r.refuses]
        return min(having or lacking, key=lambda r: (r.running, r.asked), default=None)

    def name(self, adapter: str) -> str:
        """What the servers call it."""
        return self.model if adapter == BASE else adapter

    def troubles(self) -> str:
        """Why replicas cannot be asked, in one line."""
        found = [replica.trouble for replica in self.replicas if replica.trouble]
        return "; ".join(found) or "none has it loaded"

    # -- How they are

    async def begin(self) -> None:
        """See who is up; EngineError if nobody is."""
        await asyncio.gather(*(self._look_after(replica) for replica in self.replicas))
        if not self._up():
            raise EngineError(f"No server of [engine] urls can be used: {self.troubles()}")

    async def watch(self, seconds: float) -> None:
        """See again and again how each is; one that hangs does not keep us from the others."""
        await asyncio.gather(*(self._watch(replica, seconds) for replica in self.replicas))

    async def _watch(self, replica: Replica, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await self._look_after(replica)
            except Exception:
                log.exception("looking after %s failed; trying again", replica.url)

    async def _look_after(self, replica: Replica) -> None:
        """See how one is; when it has come up it gets what it lacks before it is asked."""
        before = replica.trouble
        try:
            self._recognise(replica, await replica.look())
            async with self._changing:
                for adapter in [name for name in self.paths if name not in replica.loaded]:
                    await self._give(replica, adapter)
            replica.trouble = None
        except ReplicaError as error:
            replica.trouble = str(error)
        if replica.trouble != before:
            log.info("%s", replica.trouble or f"{replica.url} is up")

    def _recognise(self, replica: Replica, cards: list[dict[str, Any]]) -> None:
        """Check that it serves our base, and keep to the room it has."""
        bases = {str(card["id"]): card for card in cards if not card.get("parent")}
        self.model = self.model or next(iter(bases), "")
        if self.model not in bases:
            there = ", ".join(bases) or "nothing"
            raise ReplicaError(
                f"{replica.url} serves {there}, not {self.model!r}: see model in [engine]"
            )
        most = bases[self.model].get("max_model_len")
        if isinstance(most, int):
            self.room = min(self.room or most, most)

    def _up(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica.trouble is None]

    # -- Adapters

    async def load(self, adapter: str, path: str) -> None:
        """Load an adapter on every replica that is up, or on none.

        Raises AdapterError, which names the replica that refuses; UnreachableError if none answers.
        """
        async with self._changing:
            up = self._up()
            news = await asyncio.gather(
                *(replica.load(adapter, path) for replica in up), return_exceptions=True
            )
            refusal = next((new for new in news if isinstance(new, AdapterError)), None)
            if refusal is not None:
                pairs = zip(up, news, strict=True)
                await self._unload(adapter, [replica for replica, new in pairs if new is True])
                raise refusal
            if all(isinstance(new, BaseException) for new in news):
                raise UnreachableError(f"No replica can load {adapter} now: {self.troubles()}")
            self.paths = {**self.paths, adapter: path}

    async def heal(self, replica: Replica, adapter: str) -> None:
        """Load what a replica that is up has lost, by a restart or by another process's doing."""
        try:
            await self._give(replica, adapter)
        except ReplicaError as error:
            log.warning("%s", error)

    async def _give(self, replica: Replica, adapter: str) -> None:
        """Load what a replica should have. One that it refuses it is not asked for; Failed."""
        if adapter not in self.paths:
            return
        try:
            await replica.load(adapter, self.paths[adapter])
        except AdapterError as error:
            if replica.refuses.get(adapter) != str(error):
                log.warning("%s", error)
            replica.refuses[adapter] = str(error)
        else:
            replica.refuses.pop(adapter, None)

    def withdraw(self, adapter: str) -> None:
        """Nobody is asked for it any more."""
        for replica in self.replicas:
            replica.refuses.pop(adapter, None)
        self.paths = {name: path for name, path in self.paths.items() if name != adapter}

    async def unload(self, adapter: str) -> None:
        """Have all forget it, unless it was loaded again meanwhile."""
        async with self._changing:
            if adapter not in self.paths:
                await self._unload(adapter, self._up())

    async def _unload(self, adapter: str, replicas: list[Replica]) -> None:
        work = [replica.unload(adapter) for replica in replicas]
        for error in await asyncio.gather(*work, return_exceptions=True):
            if error is not None:
                log.warning("%s", error)
