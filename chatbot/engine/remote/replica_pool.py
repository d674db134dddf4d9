"""The replicas together: which of them are well, what each must have loaded, and whom to ask.

Everything here runs on the thread of the engine's event loop.
"""

import asyncio
import logging
from typing import Any

from chatbot.engine.protocol import BASE, EngineError, UnreachableError
from chatbot.engine.remote.replica import Replica, ReplicaError, base_url, http_client
from chatbot.engine.settings import RemoteSettings
from chatbot.model.adapter import AdapterError

log = logging.getLogger("talkback")


class ReplicaPool:
    """Replicas of one base. An adapter is loaded on every one that is up, or on none.

    ``model`` is the base's name on the servers, ``room`` the most tokens that all of them take
    (None: they do not say), ``paths`` the adapters that they must have -> where they see them.
    """

    def __init__(self, settings: RemoteSettings) -> None:
        if not settings.urls:
            raise EngineError("[engine] names no urls. Write where vLLM runs, or kind = 'torch'.")
        self.model = settings.model
        self.max_model_len: int | None = None
        self.adapter_paths: dict[str, str] = {}
        urls = dict.fromkeys(base_url(url) for url in settings.urls)
        self._http = http_client(settings)
        self.replicas = [Replica(url, self._http) for url in urls]
        self._adapters_lock = asyncio.Lock()

    async def close(self) -> None:
        """Hang up; what the replicas have loaded stays, others may use it."""
        await self._http.aclose()

    # -- Whom to ask

    def choose(self, adapter: str, attempts_left: dict[Replica, int]) -> Replica | None:
        """The replica with the fewest requests of those that have a chance and are able.

        One that should have the adapter and at this moment has not (another process unloaded it)
        is able too, if no other is: it says that it lacks it, and is given it then.
        """
        name = self.model_name(adapter)
        available = [r for r, left in attempts_left.items() if left and not r.unavailable_reason]
        with_adapter = [r for r in available if name in r.loaded]
        without_adapter = [
            r for r in available if adapter in self.adapter_paths and adapter not in r.load_errors
        ]
        return min(
            with_adapter or without_adapter,
            key=lambda r: (r.num_running, r.num_requests),
            default=None,
        )

    def model_name(self, adapter: str) -> str:
        """What the servers call it."""
        return self.model if adapter == BASE else adapter

    def describe_failures(self) -> str:
        """Why replicas cannot be asked, in one line."""
        found = [
            replica.unavailable_reason for replica in self.replicas if replica.unavailable_reason
        ]
        return "; ".join(found) or "none has it loaded"

    # -- How they are

    async def start(self) -> None:
        """See who is up; EngineError if nobody is."""
        await asyncio.gather(*(self._refresh(replica) for replica in self.replicas))
        if not self._available():
            raise EngineError(f"No server of [engine] urls can be used: {self.describe_failures()}")

    async def monitor(self, seconds: float) -> None:
        """See again and again how each is; one that hangs does not keep us from the others."""
        await asyncio.gather(
            *(self._monitor_replica(replica, seconds) for replica in self.replicas)
        )

    async def _monitor_replica(self, replica: Replica, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await self._refresh(replica)
            except Exception:
                log.exception("looking after %s failed; trying again", replica.url)

    async def _refresh(self, replica: Replica) -> None:
        """See how one is; when it has come up it gets what it lacks before it is asked."""
        before = replica.unavailable_reason
        try:
            self._check_base(replica, await replica.list_models())
            async with self._adapters_lock:
                for adapter in [name for name in self.adapter_paths if name not in replica.loaded]:
                    await self._load_missing(replica, adapter)
            replica.unavailable_reason = None
        except ReplicaError as error:
            replica.unavailable_reason = str(error)
        if replica.unavailable_reason != before:
            log.info("%s", replica.unavailable_reason or f"{replica.url} is up")

    def _check_base(self, replica: Replica, models: list[dict[str, Any]]) -> None:
        """Check that it serves our base, and keep to the room it has."""
        bases = {str(card["id"]): card for card in models if not card.get("parent")}
        self.model = self.model or next(iter(bases), "")
        if self.model not in bases:
            served = ", ".join(bases) or "nothing"
            raise ReplicaError(
                f"{replica.url} serves {served}, not {self.model!r}: see model in [engine]"
            )
        max_model_len = bases[self.model].get("max_model_len")
        if isinstance(max_model_len, int):
            self.max_model_len = min(self.max_model_len or max_model_len, max_model_len)

    def _available(self) -> list[Replica]:
        return [replica for replica in self.replicas if replica.unavailable_reason is None]

    # -- Adapters

    async def load(self, adapter: str, path: str) -> None:
        """Load an adapter on every replica that is up, or on none.

        Raises AdapterError, which names the replica that refuses; UnreachableError if none answers.
        """
        async with self._adapters_lock:
            available = self._available()
            results = await asyncio.gather(
                *(replica.load(adapter, path) for replica in available), return_exceptions=True
            )
            refusal = next((new for new in results if isinstance(new, AdapterError)), None)
            if refusal is not None:
                pairs = zip(available, results, strict=True)
                await self._unload_from(adapter, [replica for replica, new in pairs if new is True])
                raise refusal
            if all(isinstance(new, BaseException) for new in results):
                raise UnreachableError(
                    f"No replica can load {adapter} now: {self.describe_failures()}"
                )
            self.adapter_paths = {**self.adapter_paths, adapter: path}

    async def restore(self, replica: Replica, adapter: str) -> None:
        """Load what a replica that is up has lost, by a restart or by another process's doing."""
        try:
            await self._load_missing(replica, adapter)
        except ReplicaError as error:
            log.warning("%s", error)

    async def _load_missing(self, replica: Replica, adapter: str) -> None:
        """Load what a replica should have. One that it refuses it is not asked for; Failed."""
        if adapter not in self.adapter_paths:
            return
        try:
            await replica.load(adapter, self.adapter_paths[adapter])
        except AdapterError as error:
            if replica.load_errors.get(adapter) != str(error):
                log.warning("%s", error)
            replica.load_errors[adapter] = str(error)
        else:
            replica.load_errors.pop(adapter, None)

    def forget(self, adapter: str) -> None:
        """Nobody is asked for it any more."""
        for replica in self.replicas:
            replica.load_errors.pop(adapter, None)
        self.adapter_paths = {
            name: path for name, path in self.adapter_paths.items() if name != adapter
        }

    async def unload(self, adapter: str) -> None:
        """Have all forget it, unless it was loaded again meanwhile."""
        async with self._adapters_lock:
            if adapter not in self.adapter_paths:
                await self._unload_from(adapter, self._available())

    async def _unload_from(self, adapter: str, replicas: list[Replica]) -> None:
        work = [replica.unload(adapter) for replica in replicas]
        for error in await asyncio.gather(*work, return_exceptions=True):
            if error is not None:
                log.warning("%s", error)
