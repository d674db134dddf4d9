"""Keeps the replicas of one base: watches them, keeps their adapters loaded, chooses among them.

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
    """Manages the replicas of one base; an adapter is loaded on every one that is up, or on none.

    Raises EngineError if the settings name no usable url.
    """

    def __init__(self, settings: RemoteSettings) -> None:
        if not settings.urls:
            raise EngineError("[engine] names no urls. Write where vLLM runs, or kind = 'torch'.")
        self.model = settings.model
        """The base's name on the servers."""
        self.max_model_len: int | None = None
        """The most tokens of prompt and answer that all of them take; None: they do not say."""
        self.adapter_paths: dict[str, str] = {}
        """Adapter id -> the path at which the replicas, which must all load it, see its folder."""
        urls = dict.fromkeys(base_url(url) for url in settings.urls)
        self._http = http_client(settings)
        self.replicas = [Replica(url, self._http) for url in urls]
        self._adapters_lock = asyncio.Lock()

    async def close(self) -> None:
        """Close the connections; adapters stay loaded, for other processes may use them."""
        await self._http.aclose()

    # -- Choosing a replica

    def choose(self, adapter: str, attempts_left: dict[Replica, int]) -> Replica | None:
        """Return the available replica with the fewest requests and attempts left; None: no such.

        One that should have the adapter but has not at the moment (another process unloaded it) is
        chosen if no other has it: it answers that the adapter is missing, and `restore` follows.
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
        """Return the name by which the servers know an adapter, or the base."""
        return self.model if adapter == BASE else adapter

    def describe_failures(self) -> str:
        """Return why replicas are unavailable, in one line."""
        found = [
            replica.unavailable_reason for replica in self.replicas if replica.unavailable_reason
        ]
        return "; ".join(found) or "none has it loaded"

    # -- Watching the replicas

    async def start(self) -> None:
        """Check every replica once. Raises EngineError if none can be used."""
        await asyncio.gather(*(self._refresh(replica) for replica in self.replicas))
        if not self._available():
            raise EngineError(f"No server of [engine] urls can be used: {self.describe_failures()}")

    async def monitor(self, seconds: float) -> None:
        """Check each replica every so many seconds; one that hangs does not delay the others."""
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
        """Check one replica, and load the adapters that it lacks before it gets requests."""
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
        """Check that a replica serves our base, and keep to its length limit."""
        bases = {str(model["id"]): model for model in models if not model.get("parent")}
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
            refusal = next((result for result in results if isinstance(result, AdapterError)), None)
            if refusal is not None:
                pairs = zip(available, results, strict=True)
                loaded = [replica for replica, result in pairs if result is True]
                await self._unload_from(adapter, loaded)
                raise refusal
            if all(isinstance(result, BaseException) for result in results):
                raise UnreachableError(
                    f"No replica can load {adapter} now: {self.describe_failures()}"
                )
            self.adapter_paths = {**self.adapter_paths, adapter: path}

    async def restore(self, replica: Replica, adapter: str) -> None:
        """Load again what a replica that is up has lost, by a restart or another process."""
        try:
            await self._load_missing(replica, adapter)
        except ReplicaError as error:
            log.warning("%s", error)

    async def _load_missing(self, replica: Replica, adapter: str) -> None:
        """Load an adapter that a replica lacks; note it if the replica refuses it.

        Raises ReplicaError if the replica does not answer.
        """
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
        """Send no more requests for an adapter."""
        for replica in self.replicas:
            replica.load_errors.pop(adapter, None)
        self.adapter_paths = {
            name: path for name, path in self.adapter_paths.items() if name != adapter
        }

    async def unload(self, adapter: str) -> None:
        """Unload an adapter from all replicas, unless it was loaded again meanwhile."""
        async with self._adapters_lock:
            if adapter not in self.adapter_paths:
                await self._unload_from(adapter, self._available())

    async def _unload_from(self, adapter: str, replicas: list[Replica]) -> None:
        work = [replica.unload(adapter) for replica in replicas]
        for error in await asyncio.gather(*work, return_exceptions=True):
            if error is not None:
                log.warning("%s", error)
