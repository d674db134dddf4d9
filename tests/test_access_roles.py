"""Calls every route and every handler of the pages in every role: nobody reaches too much.

A new route or handler fails here until it has a row in the tables.
"""

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi import FastAPI
from gradio import Blocks, mount_gradio_app
from starlette.routing import Mount

from chatbot.auth import api_keys
from chatbot.auth.api_keys import Role
from chatbot.pages.chat.actions import ChatActions
from tests.fixtures.access_server import CALLERS, AccessServer
from tests.fixtures.api_client import MESSAGES, read_error

Row = tuple[Role | None, str, Any]

OPEN = None

ROUTES: dict[tuple[str, str], Row] = {
    ("GET", "/openapi.json"): (OPEN, "/openapi.json", None),
    ("HEAD", "/openapi.json"): (OPEN, "/openapi.json", None),
    ("POST", "/session"): (OPEN, "/session", {"key": "OPERATOR"}),
    ("DELETE", "/session"): (OPEN, "/session", None),
    ("GET", "/healthz"): (OPEN, "/healthz", None),
    ("GET", "/readyz"): (OPEN, "/readyz", None),
    ("GET", "/metrics"): ("operator", "/metrics", None),
    ("GET", "/v1/models"): (OPEN, "/v1/models", None),
    ("GET", "/v1/models/{name}"): (OPEN, "/v1/models/talkback", None),
    ("POST", "/v1/chat/completions"): ("user", "/v1/chat/completions", {"messages": MESSAGES}),
    ("POST", "/v1/feedback"): (
        "user",
        "/v1/feedback",
        {"message_id": "ANSWER", "kind": "thumb", "up": True},
    ),
    ("POST", "/feedback"): (
        "user",
        "/feedback",
        {"inference_id": "ANSWER", "metric_name": "thumbs_up", "value": True},
    ),
    ("GET", "/v1/reviews/next"): ("reviewer", "/v1/reviews/next", None),
    ("GET", "/v1/reviews/{message_id}"): ("reviewer", "/v1/reviews/ANSWER", None),
    ("POST", "/v1/reviews/{message_id}"): (
        "reviewer",
        "/v1/reviews/ANSWER",
        {"action": "correct", "answer": "At ten."},
    ),
    ("GET", "/v1/adapters"): ("reviewer", "/v1/adapters", None),
    ("POST", "/v1/adapters/{id}/promote"): (
        "operator",
        "/v1/adapters/ADAPTER/promote",
        {"reason": "better"},
    ),
    ("POST", "/v1/adapters/rollback"): (
        "operator",
        "/v1/adapters/rollback",
        {"reason": "worse"},
    ),
}
"""Method and route: the least role, and a request that succeeds for whoever has it."""

PAGE_ROUTES: dict[tuple[str, str], str] = {
    ("GET", "/"): "/",
    ("HEAD", "/"): "/",
    ("GET", "/review"): "/review",
    ("GET", "/review/"): "/review/",
    ("GET", "/adapters"): "/adapters",
    ("GET", "/adapters/"): "/adapters/",
    ("GET", "/config"): "/config",
    ("GET", "/theme.css"): "/theme.css?v=1",
    ("GET", "/favicon.ico"): "/favicon.ico",
    ("GET", "/static/{path:path}"): "/static/img/logo.svg",
    ("GET", "/assets/{path:path}"): "ASSET",
    ("GET", "/gradio_api/app_id"): "/gradio_api/app_id",
}
"""The pages' own routes, which are open, and a path that succeeds: what they show comes from the
handlers, each of which has its role."""

HANDLER_ROUTES = {
    ("POST", "/gradio_api/queue/join"),
    ("GET", "/gradio_api/queue/data"),
    ("POST", "/gradio_api/run/{api_name}"),
    ("GET", "/gradio_api/heartbeat/{session_hash}"),
}
"""The routes by which a browser calls the handlers; the last one streams until it leaves."""

NOWHERE = "nothing"
"""The name of the route that answers 404 on unknown paths, to anybody."""

HANDLERS: dict[str, Role | None] = {
    "ChatPage._load": OPEN,
    "ChatPage._forget": OPEN,
    "ChatPage._refresh_status": OPEN,
    "ChatPage._skip_reasons": OPEN,
    "ChatPage._skip_choice": OPEN,
    "ChatPage._start_conversation": "user",
    "ChatPage._open_conversation": "user",
    "ChatPage._undo": "user",
    "ChatPage._show_version.<locals>.show": "user",
    "ChatPage._stop_generation": "user",
    "ChatPage._send": "user",
    "ChatPage._send_example": "user",
    "ChatPage._retry": "user",
    "ChatPage._edit": "user",
    "ChatPage._rate": "user",
    "ChatPage._record_copy": "user",
    "ChatPage._add_reasons": "user",
    "ChatPage._prefer.<locals>.prefer": "user",
    "ReviewPage._load": "reviewer",
    "ReviewPage._open_item": "reviewer",
    "ReviewPage._open_next": "reviewer",
    "ReviewPage._decide.<locals>.decide": "reviewer",
    "AdaptersPage._load": "reviewer",
    "AdaptersPage._open_adapter": "reviewer",
    "AdaptersPage._refresh": "reviewer",
    "AdaptersPage._promote": "operator",
    "AdaptersPage._roll_back": "operator",
}
"""A page's handler: the least role. What is open shows nobody's messages."""

SHOWS = {
    "ReviewPage._load": "A secret edit",
    "AdaptersPage._load": "is speaking",
    "AdaptersPage._refresh": "is speaking",
}
"""Handlers that refuse nobody, and what they show to those alone who may see it."""

SILENT = {"ChatPage._stop_generation": "stop_generation"}
"""Handlers past the queue whose refusals nobody reads, and the action that they lead to."""

MAY: dict[str, set[Role | None]] = {
    "no key": {OPEN},
    "revoked": {OPEN},
    "user": {OPEN, "user"},
    "reviewer": {OPEN, "user", "reviewer"},
    "operator": {OPEN, "user", "reviewer", "operator"},
}


def routes(app: FastAPI) -> set[tuple[str, str]]:
    """List method and path of all routes of the app, those of the pages included."""
    found, left = set(), list(app.routes)
    while left:
        route: Any = left.pop()
        inner = getattr(route, "original_router", None) or getattr(route, "app", None)
        if isinstance(route, Mount) or hasattr(route, "original_router"):
            left += inner.routes  # type: ignore[union-attr]
        else:
            found |= {(method, route.path) for method in route.methods if route.name != NOWHERE}
    return found


def test_every_route_has_its_row(access_server: AccessServer) -> None:
    assert routes(access_server.app) == {*ROUTES, *PAGE_ROUTES, *HANDLER_ROUTES}


@pytest.mark.parametrize("caller", CALLERS)
def test_what_the_pages_are_made_of_is_open(access_server: AccessServer, caller: str) -> None:
    asset = re.search(r"assets/[\w.-]+\.js", access_server.http.get("/").text)
    assert asset is not None
    for (method, _), path in PAGE_ROUTES.items():
        path = path.replace("ASSET", f"/{asset[0]}")
        sent = access_server.http.request(
            method, path, headers=access_server.bearer(caller), follow_redirects=True
        )
        assert sent.status_code == 200, path


def test_what_else_gradio_brings_is_not_there(access_server: AccessServer) -> None:
    """Ask for every route of an app of Gradio's own but those that the pages use."""

    async def gradio() -> FastAPI:
        return mount_gradio_app(FastAPI(), Blocks(), "/")

    with ThreadPoolExecutor() as thread:  # whose loop Gradio finds, and makes none
        brought = routes(thread.submit(asyncio.run, gradio()).result())
    unused = brought - routes(access_server.app) - {("GET", "/openapi.json")}
    assert {path for _, path in unused} >= {
        "/gradio_api/upload",
        "/gradio_api/dev/reload",
        "/gradio_api/startup-events",
        "/gradio_api/proxy={url_path:path}",
        "/gradio_api/file={path_or_url:path}",
    }
    there = {path for _, path in routes(access_server.app)}
    for method, path in unused:
        if path.rstrip("/") in there:  # is redirected to the route that is there
            continue
        asked = re.sub(r"{\w+(:path)?}", "1", path)
        answer = access_server.http.request(method, asked, follow_redirects=False)
        assert answer.status_code in (404, 405), (method, path)


def test_nobody_uploads_a_file(access_server: AccessServer) -> None:
    for headers in ({}, {"Origin": "https://evil.example"}, access_server.bearer("operator")):
        sent = access_server.http.post(
            "/gradio_api/upload", files={"files": ("x.html", b"<script>")}, headers=headers
        )
        assert sent.status_code == 404


def test_every_handler_of_the_pages_has_its_row(access_server: AccessServer) -> None:
    assert {name for _, name, _ in access_server.handlers()} == set(HANDLERS)


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
def test_a_route_is_for_its_role(
    access_server: AccessServer, route: tuple[str, str], caller: str
) -> None:
    answer = access_server.ask(caller, route[0], *ROUTES[route][1:])
    if ROUTES[route][0] in MAY[caller]:
        assert answer.is_success, answer.text
        return
    status, error = read_error(answer)
    assert status == (403 if caller in api_keys.ROLES else 401)
    assert error["type"] == ("permission_error" if status == 403 else "authentication_error")


@pytest.mark.parametrize("caller", CALLERS)
def test_what_is_nowhere_is_nowhere_for_all(access_server: AccessServer, caller: str) -> None:
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        answer = access_server.http.request(
            method, "/v1/nowhere", headers=access_server.bearer(caller)
        )
        assert answer.status_code == 404


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("name", [name for name in HANDLERS if name not in SILENT])
def test_a_handler_is_for_its_role(access_server: AccessServer, name: str, caller: str) -> None:
    """Call the handler past the page: hiding a handler from the page would not be enough."""
    allowed = HANDLERS[name] in MAY[caller]
    for number, _, queued in [one for one in access_server.handlers() if one[1] == name]:
        output = access_server.run(caller, number, queued)
        if name in SHOWS:
            assert (SHOWS[name] in output) is allowed, output
        else:
            assert ("This needs a key of role" in output) is not allowed, output


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("name", SILENT)
def test_a_handler_past_the_queue_does_nothing_for_others(
    access_server: AccessServer, name: str, caller: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[object] = []
    monkeypatch.setattr(ChatActions, SILENT[name], lambda *given: done.append(given))
    for number, _, queued in [one for one in access_server.handlers() if one[1] == name]:
        access_server.run(caller, number, queued)
    assert bool(done) is (HANDLERS[name] in MAY[caller])


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("page", ["", "review", "adapters"])
def test_a_page_as_it_is_sent_holds_nothing_of_anybody(
    access_server: AccessServer, page: str, caller: str
) -> None:
    access_server.log_in(caller)
    sent = access_server.http.get(f"/{page}")
    assert sent.status_code == 200
    assert "A secret edit" not in sent.text and "At nine" not in sent.text
