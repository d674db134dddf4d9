"""Talks to one server that runs the base, over vLLM's routes.

Only the event loop's thread uses a replica. Routes and fields are those of vLLM in
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
"""How long /v1/models may take; a server answers it in milliseconds, under load too."""


class ReplicaError(EngineError):
    """Says that this replica did not answer; another one may."""


class ReplicaBusyError(ReplicaError):
    """Says that this replica takes no more requests now; ``retry_after`` is in seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class AdapterMissingError(ReplicaError):
    """Says that this replica has not loaded the adapter, or not any more."""


def http_client(settings: RemoteSettings) -> httpx.AsyncClient:
    """Return the HTTP client for all replicas, with as many connections as there are requests."""
    key = settings.api_key
    return httpx.AsyncClient(
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx.Timeout(settings.timeout, connect=CONNECT_SECONDS),
        limits=httpx.Limits(max_connections=None),
    )


def base_url(url: str) -> str:
    """Return a url of the settings without a trailing /v1, so that routes can be appended.

    Raises EngineError for what is no http address.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise EngineError(f"{url!r} in [engine] urls is no address. Write http://host:8000.")
    return url.rstrip("/").removesuffix("/v1")


class Replica:
    """Calls one server's routes, and holds what is known of the server."""

    def __init__(self, url: str, http: httpx.AsyncClient) -> None:
        self.url = url
        self.unavailable_reason: str | None = "not asked yet"
        """Why it gets no requests; None while it gets them."""
        self.loaded: set[str] = set()
        """The models that it listed or loaded, the base among them."""
        self.load_errors: dict[str, str] = {}
        """Adapter id -> why it refused to load that adapter."""
        self.num_running = 0
        """How many of our requests it is answering now."""
        self.num_requests = 0
        """How many of our requests it has been sent."""
        self._adapter_changes = 0
        self._http = http

    def stats(self) -> dict[str, Any]:
        """Return its state for a status page."""
        return {
            "url": self.url,
            "running": self.num_running,
            "asked": self.num_requests,
            "trouble": self.unavailable_reason,
            "refuses": dict(self.load_errors),
        }

    async def list_models(self) -> list[dict[str, Any]]:
        """Return the models that it serves now, as /v1/models lists them. Raises ReplicaError."""
        before = self._adapter_changes
        answer = await self._send("GET", "/v1/models", timeout=LIST_MODELS_SECONDS)
        if not answer.is_success:
            raise ReplicaError(
                f"{self.url}/v1/models says {_error_text(answer)}. {_remedy(answer)}".strip()
            )
        models = _json_object(answer).get("data")
        models = [model for model in models or [] if isinstance(model, dict) and model.get("id")]
        # If adapters were loaded or unloaded meanwhile, the list may be older than that.
        if before == self._adapter_changes:
            self.loaded = {str(model["id"]) for model in models}
        return models

    async def load(self, adapter: str, path: str) -> bool:
        """Load an adapter from ``path``; return False if it was loaded already.

        Raises AdapterError if the server refuses it, ReplicaError if it does not answer.
        """
        body = {"lora_name": adapter, "lora_path": path}
        answer = await self._send("POST", "/v1/load_lora_adapter", json=body)
        if answer.status_code in (429, 502, 503, 504):
            raise ReplicaError(f"{self.url} does not load now: {_error_text(answer)}.")
        # The name is a content hash: a server that lists it has loaded the very same weights.
        already_loaded = not answer.is_success and adapter in [
            model["id"] for model in await self.list_models()
        ]
        if not answer.is_success and not already_loaded:
            message = f"{self.url} does not load {adapter} from {path}: {_error_text(answer)}."
            raise AdapterError(f"{message} {_remedy(answer)}".strip())
        self._adapter_changes += 1
        self.loaded.add(adapter)
        return not already_loaded

    async def unload(self, adapter: str) -> None:
        """Unload an adapter; one that it has not loaded is fine. Raises ReplicaError."""
        self._adapter_changes += 1
        self.loaded.discard(adapter)
        answer = await self._send("POST", "/v1/unload_lora_adapter", json={"lora_name": adapter})
        if not answer.is_success and answer.status_code != 404:
            raise ReplicaError(f"{self.url} does not unload {adapter}: {_error_text(answer)}.")

    @asynccontextmanager
    async def stream_completion(
        self, body: dict[str, Any]
    ) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """Send a request, and yield the events of its answer.

        Leaving the context closes the connection, at which the server stops generating. Raises
        EngineError if the server refuses the request, ReplicaError if it cannot answer.
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
        """Mark the replica as unavailable, and return the error that says so."""
        self.unavailable_reason = (
            f"{self.url} does not answer ({str(error) or type(error).__name__})"
        )
        return ReplicaError(self.unavailable_reason)

    def _refused_request_error(self, answer: httpx.Response, model: str) -> EngineError:
        """Return the error that a refusal means, by its HTTP status."""
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
    """Yield the server-sent events up to ``[DONE]``; ReplicaError for what is not an event.

    Lines end at line feeds only: an answer may hold U+2028 or U+0085, at which str.splitlines cuts.
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
    """Return the status and the server's own message, in one line."""
    body = _json_object(answer)
    error = body.get("error")
    message = error.get("message") if isinstance(error, dict) else error or body.get("message")
    line = " ".join(str(message or body.get("detail") or answer.reason_phrase).split())
    return f"{answer.status_code} {line[:300].rstrip('.')}"


def _remedy(answer: httpx.Response) -> str:
    """Return what the operator can do about a refusal; empty where that is not known."""
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
