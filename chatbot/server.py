"""The server: API and pages in one process, up at once and speaking when the model is loaded.

    python -m chatbot.server --home ~/.talkback --base-model chatbot/starter --port 8000

Nothing heavy is imported before `run` has set the environment that torch and Gradio read once.
"""

import argparse
import ipaddress
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from chatbot.front import Front
from feedback.errors import TalkbackError
from feedback.settings import Home, Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from chatbot.service import Service

ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # or chat and a cycle beside it take the cores from each other
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}

LINGER_SECONDS = 3
"""How long answers on their way may take to end when the server is told to stop."""


class ServerSettings(Settings):
    """``[server]``: where it listens, and who may review."""

    table: ClassVar[str] = "server"

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0 takes any free one."""
    review_token: str = ""
    """The word that opens review and adapters. Empty: open on loopback, else made at each start."""


class ServerError(TalkbackError):
    """The server cannot start where it was told to."""


def create_app(service: "Service") -> "FastAPI":
    """The API, and the pages at "/". The service is closed with the app."""
    from chatbot.pages.site import mount

    return mount(create_api(service), service)


def create_api(service: "Service") -> "FastAPI":
    """The API alone, described at /openapi.json."""
    from contextlib import asynccontextmanager

    from fastapi import FastAPI

    from chatbot import api, problems

    @asynccontextmanager
    async def lifespan(_: FastAPI):  # type: ignore[no-untyped-def]  # FastAPI's own shape
        yield
        service.close()

    app = FastAPI(title="Talkback", docs_url=None, redoc_url=None, lifespan=lifespan)
    problems.install(app)
    app.include_router(api.router(service))
    return app


def run(
    home: Home,
    base: str | None = None,
    *,
    revision: str | None = None,
    host: str | None = None,
    port: int | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT. What is None comes from the settings.

    Raises ServerError, SettingsError, BaseError, StoreError.
    """
    began = time.monotonic()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("talkback").setLevel(logging.INFO)
    settings = ServerSettings.read(home)
    host = settings.host if host is None else host
    listener = listen(host, settings.port if port is None else port)
    token = settings.review_token or ("" if is_loopback(host) else secrets.token_urlsafe(12))
    address = f"http://{_in_url(host)}:{listener.getsockname()[1]}"
    say(f"Talkback is at {address} (loading the model)")
    if token and not settings.review_token:
        say(f"The review page's token is {token}")

    def load() -> "FastAPI":
        from chatbot.service import Service

        service = Service.open(home, base, revision, review_token=token)
        app = create_app(service)
        seconds = time.monotonic() - began
        say(f"{service.speaking} speaks at {address}, {seconds:.1f} s after the start")
        return app

    serve(load, listener)


def serve(load: "Callable[[], FastAPI]", listener: socket.socket) -> None:
    """Answer on the socket while ``load`` makes the app; raises what ``load`` raises."""
    import uvicorn

    front = Front(load)
    config = uvicorn.Config(
        front, log_level="warning", timeout_graceful_shutdown=LINGER_SECONDS, server_header=False
    )
    server = uvicorn.Server(config)
    front.on_failure = lambda: setattr(server, "should_exit", True)
    # uvicorn raises the signal anew after it has ended well; that is no reason to die of it.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run(sockets=[listener])
    if front.failure is not None:
        raise front.failure


def listen(host: str, port: int) -> socket.socket:
    """The listening socket; ServerError when it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)  # who comes before uvicorn accepts waits, and is not refused
    except OSError as error:
        listener.close()
        raise ServerError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another with --port "
            "(0: any) or --host"
        ) from error
    return listener


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on that host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def say(line: str) -> None:
    """A line for whoever started the server, at once also through a pipe."""
    print(line, flush=True)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def main() -> None:
    """The command line of ``python -m chatbot.server``."""
    parser = argparse.ArgumentParser(prog="python -m chatbot.server", description=__doc__)
    parser.add_argument("--home", type=Path, help="default: TALKBACK_HOME, else ~/.talkback")
    parser.add_argument("--base-model", help="a folder or a Hub id; default: the starter")
    parser.add_argument("--revision", help="the base's commit, to pin it")
    parser.add_argument("--host", help="default: 127.0.0.1")
    parser.add_argument("--port", type=int, help="default: 8000; 0: any")
    args = parser.parse_args()
    try:
        run(
            Home.find(args.home), args.base_model,
            revision=args.revision, host=args.host, port=args.port,
        )  # fmt: skip
    except TalkbackError as error:
        sys.exit(f"talkback: {error}")


if __name__ == "__main__":
    main()
