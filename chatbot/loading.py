"""Answers "loading" from the first moment until the app behind it is ready.

``/healthz`` is 200 from then on: a server that loads is alive, and must not be restarted for it.
"""

import asyncio
import json
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import FastAPI

Scope = dict[str, Any]

LOADING_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta http-equiv="refresh" content="1"><title>Talkback</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body{font:16px system-ui,sans-serif;display:grid;place-items:center;min-height:90vh;
color:#262422;background:#faf9f7}@media(prefers-color-scheme:dark){body{color:#e8e6e1;
background:#141716}}</style><p role="status">The model is waking up\u2026</p></html>"""

LOADING_ERROR = {
    "message": "The model is still loading. Try again in a moment.",
    "type": "server_error",
    "param": None,
    "code": "loading",
}


class LoadingApp:
    """Wraps an ASGI app that takes a while to make; its lifespan contains the other's."""

    def __init__(self, load: "Callable[[], FastAPI]") -> None:
        self._load = load
        self._app: FastAPI | None = None
        self._stop = asyncio.Event()
        self.failure: Exception | None = None
        """The exception that kept the app from being made, if one did."""
        self.on_failure: Callable[[], object] = lambda: None

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Pass a request on to the app, or answer that it is loading."""
        if scope["type"] == "lifespan":
            await self._run_lifespan(receive, send)
        elif self._app is not None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await _send_loading(scope, send)

    async def _run_lifespan(self, receive: Any, send: Any) -> None:
        # The messages of the lifespan are startup and shutdown. Startup completes at once, so that
        # uvicorn answers while the app is made.
        await receive()
        running = asyncio.create_task(self._run_app())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._stop.set()
        await running
        await send({"type": "lifespan.shutdown.complete"})

    async def _run_app(self) -> None:
        """Make the app, pass requests on to it, and close it when the server stops."""
        try:
            app = await self._wait_for_app()
            if app is None:
                return
            async with app.router.lifespan_context(app):
                self._app = app
                await self._stop.wait()
        except Exception as error:  # whatever keeps the app from being made ends the server
            self.failure = error
            self.on_failure()

    async def _wait_for_app(self) -> "FastAPI | None":
        """Return the app, made on a daemon thread that a stop need not wait for; None when stopped
        before."""
        made: asyncio.Future[FastAPI] = asyncio.get_running_loop().create_future()
        thread = threading.Thread(target=self._load_app, args=(made,), name="loading", daemon=True)
        thread.start()
        stopped = asyncio.ensure_future(self._stop.wait())
        both: list[asyncio.Future[Any]] = [made, stopped]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        return made.result() if made.done() else None

    def _load_app(self, made: "asyncio.Future[FastAPI]") -> None:
        loop = made.get_loop()
        try:
            app = self._load()
        except Exception as error:  # raised where the app is awaited
            loop.call_soon_threadsafe(made.set_exception, error)
        else:
            loop.call_soon_threadsafe(made.set_result, app)


async def _send_loading(scope: Scope, send: Any) -> None:
    """Send a page that reloads itself, or JSON for programs."""
    is_page, status = False, 503
    if scope["path"] == "/healthz":
        status = 200
        body: dict[str, Any] = {"ok": False, "status": "loading"}
    elif scope["path"] == "/readyz":
        body = {"ready": False, "reason": "the model is still loading"}
    elif scope["path"].startswith(("/v1/", "/feedback")):
        body = {"error": LOADING_ERROR}
    else:
        is_page, body = True, {}
    text = LOADING_PAGE if is_page else json.dumps(body)
    kind = b"text/html; charset=utf-8" if is_page else b"application/json"
    headers = [(b"content-type", kind), (b"retry-after", b"1"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
