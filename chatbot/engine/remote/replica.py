"""One server that runs the base: vLLM's routes, and what its answers mean.

A replica is touched by one thread, the engine's. Routes and fields are those of vLLM in
September 2026: /v1/models, /v1/completions, /v1/load_lora_adapter, /v1/unload_lora_adapter.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from chatbot.engine.protocol import EngineError
from chatbot.engine.settings import RemoteSettings
from chatbot.model.adapter import AdapterError

CONNECT_SECONDS = 5
LIST_MODELS_SECONDS = 5
"""How long /v1/models may take; it answers in milliseconds also under load."""


class ReplicaError(EngineError):
    """This replica did not answer; another one may."""


class ReplicaBusyError(ReplicaError):
    """This replica takes no more requests now."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class AdapterMissingError(ReplicaError):
    """This replica does not know the adapter (any more)."""


def http_client(settings: RemoteSettings) -> httpx.AsyncClient:
    """The connections to all replicas: as many as there are requests."""
    key = settings.api_key
    return httpx.AsyncClient(
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx.Timeout(settings.timeout, connect=CONNECT_SECONDS),
        limits=httpx.Limits(max_connections=None),
    )


def base_url(url: str) -> str:
    """A setting's url as the routes are put behind it; EngineError."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise EngineError(f"{url!r} in [engine] urls is no address. Write http://host:8000.")
    return url.rstrip("/").removesuffix("/v1")


class Replica:
    """A server's routes, and what is known of it.

    ``trouble`` is why it is asked nothing, None when it is well. ``loaded`` are the models that it
    listed or loaded, ``refuses`` those that it should load and does not, and why. ``running`` are
    the requests that it is answering for us, ``asked`` those ever.
    """

    def __init__(self, url: str, http: httpx.AsyncClient) -> None:
        self.url = url
        self.unavailable_reason: str | None = "not asked yet"
        self.loaded: set[str] = set()
        self.load_errors: dict[str, str] = {}
        self.num_running = 0
        self.num_requests = 0
        self._adapter_changes = 0
        self._http = http

    def stats(self) -> dict[str, Any]:
        """For a status page."""
        return {
            "url": self.url,
            "running": self.num_running,
            "asked": self.num_requests,
            "trouble": self.unavailable_reason,
            "refuses": dict(self.load_errors),
        }

    async def list_models(self) -> list[dict[str, Any]]:
        """The models that it serves now; Failed."""
        before = self._adapter_changes
        answer = await self._send("GET", "/v1/models", timeout=LIST_MODELS_SECONDS)
        if not answer.is_success:
            raise ReplicaError(
                f"{self.url}/v1/models says {_error_text(answer)}. {_remedy(answer)}".strip()
            )
        models = _json_object(answer).get("data")
        models = [card for card in models or [] if isinstance(card, dict) and card.get("id")]
        if (
            before == self._adapter_changes
        ):  # else the list may be older than what was loaded meanwhile
            self.loaded = {str(card["id"]) for card in models}
        return models

    async def load(self, adapter: str, path: str) -> bool:
        """Have it load the adapter; False if it has it already. AdapterError, Failed."""
        body = {"lora_name": adapter, "lora_path": path}
        answer = await self._send("POST", "/v1/load_lora_adapter", json=body)
        if answer.status_code in (429, 502, 503, 504):
            raise ReplicaError(f"{self.url} does not load now: {_error_text(answer)}.")
        # A name is a content hash: a server that lists it has what it was asked for.
        already_loaded = not answer.is_success and adapter in [
            card["id"] for card in await self.list_models()
        ]
        if not answer.is_success and not already_loaded:
            message = f"{self.url} does not load {adapter} from {path}: {_error_text(answer)}."
            raise AdapterError(f"{message} {_remedy(answer)}".strip())
        self._adapter_changes += 1
        self.loaded.add(adapter)
        return not already_loaded

    async def unload(self, adapter: str) -> None:
        """Have it forget the adapter; one that it does not know is fine. Failed."""
        self._adapter_changes += 1
        self.loaded.discard(adapter)
        answer = await self._send("POST", "/v1/unload_lora_adapter", json={"lora_name": adapter})
        if not answer.is_success and answer.status_code != 404:
            raise ReplicaError(f"{self.url} does not unload {adapter}: {_error_text(answer)}.")

    @asynccontextmanager
    async def stream_completion(
        self, body: dict[str, Any]
    ) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """The events of an answer; leaving ends the request there. EngineError, Failed.

        A server stops working on an answer when its connection is closed.
        """
        self.num_running += 1
        self.num_requests += 1
        try:
            url = f"{self.url}/v1/completions"
            async with self._http.stream("POST", url, json=body) as answer:
                if not answer.is_success:
                    await answer.aread()
                    raise self._refused_request_error(answer, str(body["model"]))
                yield parse_events(answer.aiter_bytes())
        except httpx.TransportError as error:
            raise self._connection_error(error) from error
        finally:
            self.num_running -= 1

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return await self._http.request(method, self.url + path, **options)
        except httpx.TransportError as error:
            raise self._connection_error(error) from error

    def _connection_error(self, error: httpx.TransportError) -> ReplicaError:
        self.unavailable_reason = (
            f"{self.url} does not answer ({str(error) or type(error).__name__})"
        )
        return ReplicaError(self.unavailable_reason)

    def _refused_request_error(self, answer: httpx.Response, model: str) -> EngineError:
        message, status = _error_text(answer), answer.status_code
        if status in (429, 503):
            return ReplicaBusyError(f"{self.url} is full: {message}.", _retry_after_seconds(answer))
        if status == 404:
            self.loaded.discard(model)
            return AdapterMissingError(f"{self.url} does not serve {model}: {message}.")
        if status in (401, 403) or status >= 500:
            return ReplicaError(f"{self.url} failed: {message}. {_remedy(answer)}".strip())
        return EngineError(f"The server refuses the request: {message}.")


async def parse_events(chunks: AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    """Server-sent events up to [DONE]; Failed for what is none.

    Lines end in a line feed and in nothing else: an answer may hold U+2028 or U+0085.
    """
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if not line.startswith(b"data:") or not data:
                continue
            if data == b"[DONE]":
                return
            yield _parse_event(data)


def _parse_event(data: bytes) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise ReplicaError(f"It sent {data[:80]!r}, which is no event of an answer.")
    return event


def _json_object(answer: httpx.Response) -> dict[str, Any]:
    try:
        value = answer.json()
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {}


def _error_text(answer: httpx.Response) -> str:
    """The server's own words, in one line."""
    body = _json_object(answer)
    error = body.get("error")
    words = error.get("message") if isinstance(error, dict) else error or body.get("message")
    line = " ".join(str(words or body.get("detail") or answer.reason_phrase).split())
    return f"{answer.status_code} {line[:300].rstrip('.')}"


def _remedy(answer: httpx.Response) -> str:
    if answer.status_code in (401, 403):
        return "Set api_key in [engine]."
    if answer.status_code not in (404, 405) or answer.url.path.startswith("/v1/completions"):
        return ""
    if answer.url.path.endswith("lora_adapter") and "error" in _json_object(answer):
        return "It must see the home's adapters folder; where that is, say in adapters_path."
    if answer.url.path.endswith("lora_adapter"):
        return (
            "Start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora; a server "
            "that is not vLLM speaks as the base alone."
        )
    return "Is it an OpenAI-compatible server?"


def _retry_after_seconds(answer: httpx.Response) -> float:
    try:
        return max(0.1, float(answer.headers.get("retry-after", 1)))
    except ValueError:
        return 1.0
