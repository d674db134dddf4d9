"""Runs the server: API and pages in one process, listening at once and answering when loaded.

    python -m chatbot.server --home ~/.talkback --base-model chatbot/starter --port 8000

Nothing heavy is imported before `run` has set the environment that torch and Gradio read once.
"""

import argparse
import gc
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

from pydantic import AfterValidator, Field

from chatbot.auth import api_keys, hub_login
from chatbot.auth.access import Access
from chatbot.auth.local_requests import is_loopback_host
from chatbot.engine.settings import EngineSettings
from chatbot.engine.workers.worker_handle import prestart_worker
from chatbot.loading import LoadingApp
from feedback.errors import TalkbackError
from feedback.home.in_use import use_home
from feedback.home.local_disk import check_local_disk
from feedback.settings import Home, Settings
from feedback.store import Store

if TYPE_CHECKING:
    from fastapi import FastAPI

    from chatbot.service import Service

ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # or waiting threads spin on the cores of a cycle beside it
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # workers read weights in large pages 5% faster
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "PYTHONSAFEPATH": "1",  # or a queue.py in the working folder ends the workers' processes
}

GRACEFUL_SHUTDOWN_SECONDS = 3
"""How long running answers may take to end when the server is asked to stop."""


OPEN_HOUSE = (
    "Until there is a key, whoever uses this machine is operator. Before a proxy or a tunnel "
    "(ssh -R, kubectl port-forward) leads here, make one: talkback keys add NAME --role operator"
)


def _check_proxy(address: str) -> str:
    """Return the address or network of a proxy, or "*"; ValueError."""
    if address != "*":
        ipaddress.ip_network(address, strict=False)
    return address


def _proxies_of_environment() -> list[str]:
    """Return the proxies that ``FORWARDED_ALLOW_IPS`` names, uvicorn's variable."""
    named = os.environ.get("FORWARDED_ALLOW_IPS", "").split(",")
    return [name.strip() for name in named if name.strip()]


ProxyAddress = Annotated[str, AfterValidator(_check_proxy)]


class ServerSettings(Settings):
    """Holds table ``[server]``: where it listens, who may use it, and how much."""

    table: ClassVar[str] = "server"

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0 takes any free one."""
    review_token: str = ""
    """An operator's key of your own choice. Empty: none; where others reach the server and no
    reviewer has a key yet, one is made at each start."""
    anonymous: bool = True
    """Whether people may chat without a key."""
    reviewers: list[str] = Field(default_factory=list)
    """Names of the Hugging Face Hub that may review, on a Space that people log in to."""
    operators: list[str] = Field(default_factory=list)
    """Names that may also promote and roll back."""
    rate_per_minute: Annotated[float | None, Field(ge=0)] = None
    """Requests of one key, or of one address without a key; 0: any number. Not set: 60, and any
    number on this machine itself, if no other reaches the server."""
    burst: Annotated[int, Field(ge=1)] = 20
    """How many requests of one caller may come at once."""
    max_request_bytes: Annotated[int, Field(ge=1)] = 1_000_000
    """The largest body of a request."""
    trusted_proxies: list[ProxyAddress] = Field(default_factory=_proxies_of_environment)
    """Addresses or networks of the proxies before the server, whose X-Forwarded-For is believed;
    "*": every peer's. With one, nothing is open without a key. Not set: FORWARDED_ALLOW_IPS of the
    environment."""
    cors_origins: list[str] = Field(default_factory=list)
    """Web sites (``https://example.com``) whose scripts may use the API; empty: none."""


class ServerError(TalkbackError):
    """Signals that the server cannot listen at its address."""


def create_app(service: "Service", settings: ServerSettings | None = None) -> "FastAPI":
    """Return the API, with the pages at "/". The service is closed with the app; SettingsError."""
    from chatbot.pages.app import mount_pages

    return mount_pages(create_api(service, settings), service)


def create_api(service: "Service", settings: ServerSettings | None = None) -> "FastAPI":
    """Return the API alone, described at /openapi.json; SettingsError."""
    from contextlib import asynccontextmanager

    from fastapi import FastAPI

    from chatbot.api.errors import add_error_handlers
    from chatbot.api.operations.monitoring import RequestCountMiddleware
    from chatbot.api.routes import add_routes
    from chatbot.webhooks.delivery import WebhookDelivery, WebhookSettings

    webhooks = WebhookDelivery(service.home, service.store, WebhookSettings.read(service.home))

    @asynccontextmanager
    async def lifespan(_: FastAPI):  # type: ignore[no-untyped-def]  # FastAPI's own shape
        webhooks.start()
        yield
        webhooks.close()
        service.close()

    app = FastAPI(title="Talkback", docs_url=None, redoc_url=None, lifespan=lifespan)
    add_error_handlers(app)
    add_request_guards(app, service.access, settings or ServerSettings())
    # Added after the limits, so before them: it counts the requests that they refuse too.
    app.add_middleware(RequestCountMiddleware, metrics=service.metrics)
    add_routes(app, service, webhooks.pending)
    return app


def add_request_guards(app: "FastAPI", access: Access, settings: ServerSettings) -> None:
    """Put the request limits before the app, the rules for other sites (CORS) before them, and
    what believes the proxies before all."""
    from starlette.middleware.cors import CORSMiddleware
    from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

    from chatbot.api.limits import RequestLimitMiddleware

    access.cors_origins = frozenset(settings.cors_origins)
    app.add_middleware(
        RequestLimitMiddleware,
        access=access,
        rate_per_minute=settings.rate_per_minute,
        burst=settings.burst,
        max_body_bytes=settings.max_request_bytes,
    )
    # Added even without an origin: without this middleware Gradio allows the scripts of every site.
    app.add_middleware(
        CORSMiddleware,
        allow_origins=settings.cors_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["Retry-After"],
    )
    if settings.trusted_proxies:
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=settings.trusted_proxies)


def run(
    home: Home,
    base: str | None = None,
    *,
    revision: str | None = None,
    host: str | None = None,
    port: int | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT. What is None comes from the settings.

    Raises ServerError, SettingsError, BaseError, StoreError, HomeInUseError.
    """
    started = time.monotonic()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("talkback").setLevel(logging.INFO)
    settings = ServerSettings.read(home)
    host = settings.host if host is None else host
    listener = open_listener(host, settings.port if port is None else port)
    address = f"http://{_url_host(host)}:{listener.getsockname()[1]}"
    print_line(f"Talkback is at {address} (loading the model)")
    if exposure := home.exposure():
        print_line(exposure)

    def load() -> "FastAPI":
        first = prestart_worker(EngineSettings.read(home))
        from chatbot.service import Service

        service = Service.open(home, base, revision, first=first)
        service.access = access_for_host(service.store, home, settings, host)
        app = create_app(service, settings)
        freeze_garbage_collector()
        seconds = time.monotonic() - started
        print_line(f"{service.speaking} speaks at {address}, {seconds:.1f} s after the start")
        return app

    with listener, use_home(home):
        serve(load, listener)


def freeze_garbage_collector() -> None:
    """Exempt all objects that exist by now from garbage collection: to traverse what torch and
    Gradio are made of takes a good part of a second, in which every stream stands still."""
    gc.collect()
    gc.freeze()
    gc.collect()  # resets the threshold of full collections: a quarter of what the last one saw


def access_for_host(store: Store, home: Home, settings: ServerSettings, host: str) -> Access:
    """Return the access rules of a server on ``host``. Where others reach it, also by a proxy, and
    nobody could review, a review token is made and printed."""
    token = settings.review_token
    loopback = is_loopback_host(host) and not settings.trusted_proxies
    if loopback and not token and not api_keys.any_exist(store):
        print_line(OPEN_HOUSE)
    if not (token or loopback or _reviewer_exists(store, settings)):
        token = secrets.token_urlsafe(12)
        print_line(f"The review page's token is {token} (a key that lasts: talkback keys add NAME)")
    return Access(
        store,
        home.root,
        token=token,
        loopback=loopback,
        anonymous=settings.anonymous,
        reviewers=settings.reviewers,
        operators=settings.operators,
    )


def _reviewer_exists(store: Store, settings: ServerSettings) -> bool:
    """Tell whether anybody can review: by a key, or by their name on a Space."""
    if hub_login.is_enabled() and (settings.reviewers or settings.operators):
        return True
    return any(key.role != "user" and key.revoked_at is None for key in api_keys.list_all(store))


def serve(load: "Callable[[], FastAPI]", listener: socket.socket) -> None:
    """Answer on the socket while ``load`` makes the app; raises what ``load`` raises."""
    import uvicorn

    loading_app = LoadingApp(load)
    config = uvicorn.Config(
        loading_app,
        log_level="warning",
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_SECONDS,
        server_header=False,
        proxy_headers=False,  # `add_request_guards` believes those alone that the settings name
    )
    server = uvicorn.Server(config)
    loading_app.on_failure = lambda: setattr(server, "should_exit", True)
    # uvicorn raises the signal again once it has shut down; with the default handler the process
    # would die of it, and not return an exit code of 0.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run(sockets=[listener])
    if loading_app.failure is not None:
        raise loading_app.failure


def open_listener(host: str, port: int) -> socket.socket:
    """Return the listening socket; ServerError when the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)  # connections made before uvicorn accepts wait in the backlog
    except OSError as error:
        listener.close()
        raise ServerError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another with --port "
            "(0: any) or --host"
        ) from error
    return listener


def print_line(line: str) -> None:
    """Print a line for whoever started the server, flushed so that it passes a pipe at once."""
    print(line, flush=True)


def _url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def main() -> None:
    """Run the command line of ``python -m chatbot.server``."""
    parser = argparse.ArgumentParser(prog="python -m chatbot.server", description=__doc__)
    parser.add_argument("--home", type=Path, help="default: TALKBACK_HOME, else ~/.talkback")
    parser.add_argument("--base-model", help="a folder or a Hub id; default: the starter")
    parser.add_argument("--revision", help="the base's commit, to pin it")
    parser.add_argument("--host", help="default: 127.0.0.1")
    parser.add_argument("--port", type=int, help="default: 8000; 0: any")
    args = parser.parse_args()
    try:
        home = Home.find(args.home)
        check_local_disk(home)
        run(
            home,
            args.base_model,
            revision=args.revision,
            host=args.host,
            port=args.port,
        )
    except TalkbackError as error:
        sys.exit(f"talkback: {error}")


if __name__ == "__main__":
    main()
