"""Calls every route and every handler of the pages in every role: nobody reaches too much.

A new route or handler fails here until it has a row in the tables.
"""

import asyncio
import itertools
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from gradio import Blocks, mount_gradio_app
from starlette.requests import HTTPConnection
from starlette.routing import Mount

from chatbot.api import errors
from chatbot.api.routes import add_routes
from chatbot.auth import api_keys
from chatbot.auth.access import Access, Caller
from chatbot.auth.api_keys import NewApiKey, Role
from chatbot.auth.hub_login import hub_username
from chatbot.auth.sessions import COOKIE_NAME, SessionCookies
from chatbot.pages.browser_identity import BrowserIdentities, LoginName
from chatbot.pages.chat.actions import ChatActions
from chatbot.server import create_app
from chatbot.service import Service
from feedback.messages import Speaker
from feedback.review.decisions import decision_on
from feedback.settings import Home
from feedback.store import Store
from tests.fakes.scripted_engine import ScriptedEngine, new_adapter, open_service
from tests.fixtures.api_client import MESSAGES, read_error
from tests.fixtures.conversations import SPEAKER, add_answer, add_edit
from tests.fixtures.http_server import serve_app

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

CALLERS = ("no key", "revoked", "user", "reviewer", "operator")
MAY: dict[str, set[Role | None]] = {
    "no key": {OPEN},
    "revoked": {OPEN},
    "user": {OPEN, "user"},
    "reviewer": {OPEN, "user", "reviewer"},
    "operator": {OPEN, "user", "reviewer", "operator"},
}


@dataclass
class AccessServer:
    """Holds a server where nobody chats without a key, a key of every role, and data to reach."""

    service: Service
    app: FastAPI
    http: httpx.Client
    keys: dict[str, NewApiKey]
    """By role; "revoked" was an operator's."""
    names: dict[str, str]
    """The values of the names in capitals in the tables."""
    sessions: Iterator[int] = field(default_factory=itertools.count)

    def bearer(self, caller: str) -> dict[str, str]:
        """Return the header by which a program sends the key."""
        return (
            {"Authorization": f"Bearer {self.keys[caller].secret}"} if caller in self.keys else {}
        )

    def log_in(self, caller: str) -> None:
        """Give the client the cookie of a login with the key."""
        self.http.cookies.clear()
        if caller in api_keys.ROLES:
            assert self.http.post("/session", json={"key": self.keys[caller].secret}).is_success
        elif caller == "revoked":
            value = self.service.access.sessions.issue(self.keys["revoked"].id)
            self.http.cookies.set(COOKIE_NAME, value)

    def ask(self, caller: str, route: tuple[str, str]) -> httpx.Response:
        """Send the request of the table with the caller's key."""
        _, path, body = ROUTES[route]
        content = json.dumps(body)
        for short, long in self.names.items():
            path, content = path.replace(short, long), content.replace(short, long)
        headers = {"content-type": "application/json", **self.bearer(caller)}
        answer = self.http.request(
            route[0], path, content=None if body is None else content, headers=headers
        )
        self.http.cookies.clear()
        return answer

    def run(self, caller: str, number: int, queued: bool) -> str:
        """Call a handler as a browser that has logged in; return all of its answer."""
        self.log_in(caller)
        session = f"session{next(self.sessions)}"
        body = {
            "data": self.values(number),
            "fn_index": number,
            "session_hash": session,
            "event_data": self.event(number),
        }
        if not queued:
            return self.http.post("/gradio_api/run/predict", json=body).text
        joined = self.http.post("/gradio_api/queue/join", json=body)
        assert joined.is_success, joined.text
        return self.http.get("/gradio_api/queue/data", params={"session_hash": session}).text

    def values(self, number: int) -> list[object]:
        """Return inputs that Gradio accepts for a handler, so that the handler itself runs."""
        kinds = {one["id"]: one["type"] for one in self.config["components"]}
        inputs = self.dependency(number)["inputs"]
        nothing: dict[str, object] = {"chatbot": [], "checkboxgroup": [], "textbox": "x"}
        return [nothing.get(kinds[name]) for name in inputs]

    def event(self, number: int) -> dict[str, object]:
        """Return what the browser sends of the event that a handler listens to."""
        example = self.dependency(number)["targets"][0][1] == "example_select"
        value = {"text": "x"} if example else "x"
        return {"index": 0, "value": value, "previous_value": "", "liked": True}

    def dependency(self, number: int) -> dict[str, Any]:
        return next(one for one in self.config["dependencies"] if one["id"] == number)

    @cached_property
    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = self.http.get("/config").json()
        return config


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AccessServer]:
    service = open_service(tmp_path_factory.mktemp("access"), ScriptedEngine(pause=0))
    store = service.store
    service.access = Access(store, service.home.root, anonymous=False)
    made = {str(role): api_keys.create(store, f"the {role}", role) for role in api_keys.ROLES}
    made["revoked"] = api_keys.create(store, "gone", "operator")
    api_keys.revoke(store, made["revoked"].id)
    message, secret = answered(service, "the user"), answered(service, "the user")
    store.add_feedback(secret, "the user", "edit", {"text": "A secret edit"})
    service.registry.promote(new_adapter(service), "person", "otto", "so that one can go back")
    adapter = service.registry.adapters()[0].id
    names = {"ANSWER": message, "ADAPTER": adapter, "OPERATOR": made["operator"].secret}
    app = create_app(service)
    with serve_app(app) as url, httpx.Client(base_url=url, timeout=60) as http:
        yield AccessServer(service, app, http, made, names)


def answered(service: Service, person: str) -> str:
    """Store an answer to this person and return its id."""
    talk = service.store.start_conversation(person, "When do you open?")
    asked = service.store.add_message(talk, None, "user", "When do you open?")
    speaker = Speaker(adapter=service.speaking, base="tiny")
    return service.store.add_message(talk, asked, "assistant", "At nine.", speaker)


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


def handlers(app: FastAPI) -> list[tuple[int, str, bool]]:
    """List number, name and whether it is queued, of all handlers of the pages."""
    (pages,) = [route for route in app.routes if isinstance(route, Mount)]
    fns = pages.app.get_blocks().fns  # type: ignore[attr-defined]
    return [(i, one.fn.__qualname__, one.queue) for i, one in fns.items() if one.fn]


def test_every_route_has_its_row(server: AccessServer) -> None:
    assert routes(server.app) == {*ROUTES, *PAGE_ROUTES, *HANDLER_ROUTES}


@pytest.mark.parametrize("caller", CALLERS)
def test_what_the_pages_are_made_of_is_open(server: AccessServer, caller: str) -> None:
    asset = re.search(r"assets/[\w.-]+\.js", server.http.get("/").text)
    assert asset is not None
    for (method, _), path in PAGE_ROUTES.items():
        path = path.replace("ASSET", f"/{asset[0]}")
        sent = server.http.request(
            method, path, headers=server.bearer(caller), follow_redirects=True
        )
        assert sent.status_code == 200, path


def test_what_else_gradio_brings_is_not_there(server: AccessServer) -> None:
    """Ask for every route of an app of Gradio's own but those that the pages use."""

    async def gradio() -> FastAPI:
        return mount_gradio_app(FastAPI(), Blocks(), "/")

    with ThreadPoolExecutor() as thread:  # whose loop Gradio finds, and makes none
        brought = routes(thread.submit(asyncio.run, gradio()).result())
    unused = brought - routes(server.app) - {("GET", "/openapi.json")}
    assert {path for _, path in unused} >= {
        "/gradio_api/upload",
        "/gradio_api/dev/reload",
        "/gradio_api/startup-events",
        "/gradio_api/proxy={url_path:path}",
        "/gradio_api/file={path_or_url:path}",
    }
    there = {path for _, path in routes(server.app)}
    for method, path in unused:
        if path.rstrip("/") in there:  # is redirected to the route that is there
            continue
        asked = re.sub(r"{\w+(:path)?}", "1", path)
        answer = server.http.request(method, asked, follow_redirects=False)
        assert answer.status_code in (404, 405), (method, path)


def test_nobody_uploads_a_file(server: AccessServer) -> None:
    for headers in ({}, {"Origin": "https://evil.example"}, server.bearer("operator")):
        sent = server.http.post(
            "/gradio_api/upload", files={"files": ("x.html", b"<script>")}, headers=headers
        )
        assert sent.status_code == 404


def test_every_handler_of_the_pages_has_its_row(server: AccessServer) -> None:
    assert {name for _, name, _ in handlers(server.app)} == set(HANDLERS)


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
def test_a_route_is_for_its_role(server: AccessServer, route: tuple[str, str], caller: str) -> None:
    answer = server.ask(caller, route)
    if ROUTES[route][0] in MAY[caller]:
        assert answer.is_success, answer.text
        return
    status, error = read_error(answer)
    assert status == (403 if caller in api_keys.ROLES else 401)
    assert error["type"] == ("permission_error" if status == 403 else "authentication_error")


@pytest.mark.parametrize("caller", CALLERS)
def test_what_is_nowhere_is_nowhere_for_all(server: AccessServer, caller: str) -> None:
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        answer = server.http.request(method, "/v1/nowhere", headers=server.bearer(caller))
        assert answer.status_code == 404


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("name", [name for name in HANDLERS if name not in SILENT])
def test_a_handler_is_for_its_role(server: AccessServer, name: str, caller: str) -> None:
    """Call the handler past the page: hiding a handler from the page would not be enough."""
    allowed = HANDLERS[name] in MAY[caller]
    for number, _, queued in [one for one in handlers(server.app) if one[1] == name]:
        output = server.run(caller, number, queued)
        if name in SHOWS:
            assert (SHOWS[name] in output) is allowed, output
        else:
            assert ("This needs a key of role" in output) is not allowed, output


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("name", SILENT)
def test_a_handler_past_the_queue_does_nothing_for_others(
    server: AccessServer, name: str, caller: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[object] = []
    monkeypatch.setattr(ChatActions, SILENT[name], lambda *given: done.append(given))
    for number, _, queued in [one for one in handlers(server.app) if one[1] == name]:
        server.run(caller, number, queued)
    assert bool(done) is (HANDLERS[name] in MAY[caller])


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("page", ["", "review", "adapters"])
def test_a_page_as_it_is_sent_holds_nothing_of_anybody(
    server: AccessServer, page: str, caller: str
) -> None:
    server.log_in(caller)
    sent = server.http.get(f"/{page}")
    assert sent.status_code == 200
    assert "A secret edit" not in sent.text and "At nine" not in sent.text


def test_decisions_are_kept_with_the_name_of_the_key(server: AccessServer) -> None:
    server.ask("reviewer", ("POST", "/v1/reviews/{message_id}"))
    server.ask("operator", ("POST", "/v1/adapters/{id}/promote"))
    decision = decision_on(server.service.store, server.names["ANSWER"])
    assert decision is not None and decision.reviewer == "the reviewer"
    newest = server.service.registry.history()[0]
    assert (newest.by, newest.who, newest.reason) == ("person", "the operator", "better")


def test_reviews_go_on_over_http(server: AccessServer) -> None:
    bearer = server.bearer("reviewer")
    review = server.http.get("/v1/reviews/next", headers=bearer).json()
    message, proposed = review["item"]["message_id"], review["item"]["proposed"]
    assert (review["waiting"], proposed) == (1, "A secret edit")
    approval = {"action": "approve", "answer": proposed, "note": "yes"}
    stored = server.http.post(f"/v1/reviews/{message}", json=approval, headers=bearer).json()
    assert (stored["answer"], stored["reviewer"], stored["note"]) == (
        proposed,
        "the reviewer",
        "yes",
    )
    review = server.http.get("/v1/reviews/next", headers=bearer).json()
    assert review == {"waiting": 0, "item": None}
    stale = {"action": "approve", "answer": "At noon."}
    assert server.http.post(f"/v1/reviews/{message}", json=stale, headers=bearer).status_code == 400
    nobody = server.http.post("/v1/reviews/msg-none", json=stale, headers=bearer)
    assert read_error(nobody)[0] == 404
    unknown = server.http.post(f"/v1/reviews/{message}", json={"action": "no"}, headers=bearer)
    assert read_error(unknown)[1]["param"] == "action"


def test_a_decision_over_http_overrules_nobody_unknowingly(server: AccessServer) -> None:
    reviewer, operator = server.bearer("reviewer"), server.bearer("operator")
    store = server.service.store
    cut = replace(SPEAKER, finish="length")
    message = add_answer(store, "When do you open?", "From nine to", speaker=cut)
    for person, text in (("bob", "At eight."), ("ann", "At nine.")):
        add_edit(store, message, text, person)
    path = f"/v1/reviews/{message}"
    seen = server.http.get("/v1/reviews/next", headers=operator).json()["item"]
    edits = [(edit["text"], edit["people"]) for edit in seen["edits"]]
    assert edits == [("At eight.", ["bob"]), ("At nine.", ["ann"])]
    assert (seen["disagree"], seen["finish"]) == (True, "length")
    correction = {"action": "correct", "answer": "At ten.", "seen": seen["version"]}
    assert server.http.post(path, json=correction, headers=reviewer).status_code == 200
    for body in ({"action": "reject", "seen": seen["version"]}, {"action": "reject"}):
        status, error = read_error(server.http.post(path, json=body, headers=operator))
        assert (status, error["code"], error["param"]) == (409, "changed_since_seen", "seen")
        assert 'the reviewer corrected it to "At ten." on 20' in error["message"]
    now = server.http.get(path, headers=operator).json()
    assert now["decision"]["answer"] == "At ten."
    body = {"action": "reject", "seen": now["version"]}
    assert server.http.post(path, json=body, headers=operator).json()["reviewer"] == "the operator"


def test_a_promotion_over_http_overrules_neither_the_gate_nor_another_unknowingly(
    server: AccessServer,
) -> None:
    service, bearer = server.service, server.bearer("operator")
    adapter, before = new_adapter(service, seed=8), service.registry.promotion()
    service.registry.add_report(
        "rep-8", adapter=adapter, against="a-0", verdict="refuse", reasons=["It forgets."]
    )
    seen = server.http.get("/v1/adapters", headers=bearer).json()["promotion"]
    body, path = {"reason": "for a look", "seen": seen}, f"/v1/adapters/{adapter}/promote"
    status, error = read_error(server.http.post(path, json=body, headers=bearer))
    assert (status, error["code"]) == (409, "confirmation_required")
    assert "It forgets." in error["message"]
    assert service.registry.promotion() == before
    made = server.http.post(path, json={**body, "confirm": True}, headers=bearer).json()
    assert (made["who"], made["reason"]) == ("the operator", "for a look")
    for again in (path, "/v1/adapters/rollback"):
        answer = server.http.post(again, json={**body, "confirm": True}, headers=bearer)
        status, error = read_error(answer)
        assert (status, error["code"]) == (409, "changed_since_seen")
        assert f"the operator promoted {adapter} on 20" in error["message"]


def test_a_rollback_that_is_sent_twice_goes_one_step_back(server: AccessServer) -> None:
    bearer, registry = server.bearer("operator"), server.service.registry
    first, second, third = (new_adapter(server.service, seed=seed) for seed in (20, 21, 22))
    for adapter in (first, second, third):
        registry.promote(adapter, "gate", "gate", "better")

    def roll_back(**seen: str) -> httpx.Response:
        body = {"reason": "too terse", **seen}
        url = f"{server.http.base_url}/v1/adapters/rollback"
        return httpx.post(url, json=body, headers=bearer, timeout=60)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: roll_back(), range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409]
    assert registry.history()[0].adapter == second
    status, error = read_error(roll_back())
    assert (status, error["code"], error["param"]) == (409, "changed_since_seen", "seen")
    newest = registry.history()[0].id
    assert (
        f"the operator promoted {second} on 20" in error["message"] and newest in error["message"]
    )
    assert roll_back(seen=newest).json()["adapter"] == first
    registry.promote(third, "person", "otto", "after all")
    assert roll_back().json()["adapter"] == first, "what was promoted by hand is left as before"


def test_promotions_over_http_are_followed_and_mistakes_told(server: AccessServer) -> None:
    bearer, registry = server.bearer("operator"), server.service.registry
    adapter = new_adapter(server.service, seed=7)
    why = {"reason": "reads better"}
    made = server.http.post(f"/v1/adapters/{adapter}/promote", json=why, headers=bearer).json()
    assert (made["adapter"], made["reason"]) == (adapter, "reads better")
    server.service.rollout.follow()
    listed = server.http.get("/v1/adapters", headers=bearer).json()
    assert listed["speaking"] == adapter
    assert [one["id"] for one in listed["adapters"] if one["speaking"]] == [adapter]
    before = len(registry.history())
    for path, body, status in (
        ("a-none/promote", why, 404),
        (f"{adapter}/promote", {"reason": " "}, 400),
        (f"{adapter}/promote", {}, 400),
        ("rollback", {}, 400),
    ):
        answer = server.http.post(f"/v1/adapters/{path}", json=body, headers=bearer)
        assert read_error(answer)[0] == status
    assert len(registry.history()) == before


def test_the_api_document_knows_what_is_sent(server: AccessServer) -> None:
    document = server.http.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert {"NextReview", "ReviewRequest", "Decision", "Adapters", "Promotion"} <= set(schemas)
    answer = document["paths"]["/v1/adapters"]["get"]["responses"]
    assert answer["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/Adapters")


@pytest.fixture(scope="module")
def other(server: AccessServer) -> dict[str, str]:
    """Return the header with the key of another user."""
    made = api_keys.create(server.service.store, "the user's friend", "user")
    return {"Authorization": f"Bearer {made.secret}"}


class TestPersons:
    """Tests that a user's key speaks for its own people and reaches no other conversation."""

    def talk(self, server: AccessServer, key: dict[str, str], **fields: Any) -> httpx.Response:
        body = {"messages": MESSAGES, **fields}
        return server.http.post("/v1/chat/completions", json=body, headers=key)

    def test_the_person_is_the_keys_name_and_the_user_within_it(
        self, server: AccessServer, other: dict[str, str]
    ) -> None:
        store = server.service.store
        for key, user, person in (
            (server.bearer("user"), None, "the user"),
            (server.bearer("user"), "bob", "the user/bob"),
            (other, "the user", "the user's friend/the user"),
            (server.bearer("reviewer"), None, "the reviewer"),
            (server.bearer("reviewer"), "bob", "bob"),
        ):
            conversation_id = self.talk(server, key, user=user).json()["metadata"][
                "conversation_id"
            ]
            assert store.conversation(conversation_id).person == person

    def test_a_users_key_goes_on_with_its_own_talk_alone(
        self, server: AccessServer, other: dict[str, str]
    ) -> None:
        own_key = server.bearer("user")
        talk = {"conversation_id": self.talk(server, own_key).json()["metadata"]["conversation_id"]}
        assert self.talk(server, own_key, metadata=talk).status_code == 200
        for user in (None, "the user"):
            assert self.talk(server, other, metadata=talk, user=user).status_code == 403

    def test_feedback_on_anothers_answer_is_forbidden(
        self, server: AccessServer, other: dict[str, str]
    ) -> None:
        id = self.talk(server, server.bearer("user"), user="bob").json()["id"]
        thumb = {"message_id": id, "kind": "thumb", "up": False}

        def rate(key: dict[str, str], **fields: str) -> int:
            answer = server.http.post("/v1/feedback", json={**thumb, **fields}, headers=key)
            return answer.status_code

        assert rate(other) == rate(other, user="the user/bob") == 403
        assert server.service.store.feedback_on(id) == []
        assert rate(server.bearer("user")) == rate(server.bearer("user"), user="carl") == 200
        assert rate(server.bearer("reviewer"), user="dora") == 200
        people = [one.person for one in server.service.store.feedback_on(id)]
        assert people == ["the user/bob", "the user/carl", "dora"]

    def test_on_the_page_a_login_finds_its_own_talk_on_any_device(
        self, server: AccessServer
    ) -> None:
        talk = server.service.store.start_conversation("the user", "Only mine to see")
        load = next(one for one in handlers(server.app) if one[1] == "ChatPage._load")
        shown = {caller: server.run(caller, load[0], load[2]) for caller in CALLERS}
        assert [caller for caller, output in shown.items() if talk in output] == ["user"]


class TestWithoutAKey:
    """Tests what callers without a key may do, where it depends on the settings."""

    def ask(self, access: Access, service: Service, path: str, **request: Any) -> httpx.Response:
        """Send one request to the API alone, under these access rules."""
        usual, service.access = service.access, access
        app = FastAPI()
        errors.add_error_handlers(app)
        add_routes(app, service, webhook_backlog=lambda: 0)
        service.access = usual
        with serve_app(app) as url:
            return httpx.request(request.pop("method", "GET"), f"{url}{path}", **request)

    def test_a_public_chat_is_open_and_keeps_people_apart(self, server: AccessServer) -> None:
        service, store = server.service, server.service.store
        public = Access(store, service.home.root)
        body = {"messages": MESSAGES, "user": "the user"}
        chat = {"method": "POST", "json": body}
        completion = self.ask(public, service, "/v1/chat/completions", **chat).json()
        talk = store.conversation(completion["metadata"]["conversation_id"])
        assert talk.person == "anonymous/the user"
        thumb = {"message_id": server.names["ANSWER"], "kind": "thumb", "up": True}
        rated = self.ask(public, service, "/v1/feedback", method="POST", json=thumb)
        assert rated.status_code == 403
        assert self.ask(public, service, "/v1/reviews/next").status_code == 401

    def test_a_key_that_is_no_key_of_ours_counts_as_none(self, server: AccessServer) -> None:
        public = Access(server.service.store, server.service.home.root)
        for key, status in (("any", 200), ("sk-other", 200), ("tb-guess", 401)):
            bearer = {"Authorization": f"Bearer {key}"}
            chat = {"method": "POST", "json": {"messages": MESSAGES}, "headers": bearer}
            answer = self.ask(public, server.service, "/v1/chat/completions", **chat)
            assert answer.status_code == status


def request(host: str = "127.0.0.1", **headers: str) -> HTTPConnection:
    """Return a request as ASGI has it."""
    headers = {"host": "127.0.0.1:8000", **headers}
    raw = [(key.replace("_", "-").encode(), value.encode()) for key, value in headers.items()]
    return HTTPConnection({"type": "http", "client": (host, 5), "headers": raw})


class TestRules:
    """Tests the access rules without a server."""

    def test_all_is_open_on_loopback_until_there_is_a_key(self, store: Store, home: Home) -> None:
        access = Access(store, home.root)
        assert access.identify(request()).role == "operator"
        assert access.identify(request()).person_named("ann") == "ann"
        made = api_keys.create(store, "ann", "user")
        assert access.identify(request()).role == "user"
        api_keys.revoke(store, made.id)
        assert access.identify(request()).role == "user"

    @pytest.mark.parametrize(
        ("host", "settings"),
        [
            ("127.0.0.1", {"loopback": False}),
            ("127.0.0.1", {"token": "owl"}),
            ("192.0.2.7", {}),
            ("elsewhere", {}),
        ],
    )
    def test_nothing_is_open_where_others_reach_it(
        self, store: Store, home: Home, host: str, settings: Any
    ) -> None:
        access = Access(store, home.root, **settings)
        assert access.identify(request(host)) == Caller("user", "anonymous")
        closed = Access(store, home.root, anonymous=False, **settings)
        assert closed.identify(request(host)).role is None

    def test_the_review_token_is_an_operators_key_until_it_changes(
        self, store: Store, home: Home
    ) -> None:
        access = Access(store, home.root, token="owl")
        assert access.identify(request(authorization="Bearer owl")).role == "operator"
        assert access.identify(request(authorization="Bearer howl")).role == "user"
        known = access.log_in(request(), "owl")
        cookie = f"{COOKIE_NAME}={access.sessions.issue(known.id)}"
        assert access.identify(request(cookie=cookie)).role == "operator"
        changed = Access(store, home.root, token="eagle")
        assert changed.identify(request(cookie=cookie)).role == "user"

    def test_a_login_counts_for_our_own_pages_alone(self, store: Store, home: Home) -> None:
        access = Access(store, home.root)
        made = api_keys.create(store, "rita", "reviewer")
        cookie = f"{COOKIE_NAME}={access.sessions.issue(made.id)}"
        for site, role in (
            ("same-origin", "reviewer"),
            ("none", "reviewer"),
            ("cross-site", "user"),
            ("same-site", "user"),
        ):
            assert access.identify(request(cookie=cookie, sec_fetch_site=site)).role == role

    def test_no_login_can_be_made_up(self, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        sessions = SessionCookies(home.root)
        good = sessions.issue("key-1")
        assert sessions.read(good) == "key-1"
        person = BrowserIdentities(home.root).issue()
        for bad in (None, "", "key-1", ".", "..", good[:-1], good.replace("1", "2", 1), person):
            assert sessions.read(bad) is None
        monkeypatch.setattr("time.time", lambda: 1e11)
        assert sessions.read(good) is None

    def test_a_name_that_a_browser_sends_is_no_login(self, home: Home) -> None:
        people = BrowserIdentities(home.root)
        assert people.identify("ann")[1] != "ann"
        assert people.identify(LoginName("ann"))[1] == "ann"

    def test_names_of_the_hub_have_roles_on_a_space(
        self, store: Store, home: Home, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        access = Access(store, home.root, reviewers=["rita"], operators=["otto"], anonymous=False)
        roles = {name: access._hub_caller(name) for name in ("ann", "rita", "otto")}
        assert [c and c.role for c in roles.values()] == ["user", "reviewer", "operator"]
        assert access._hub_caller(None) is None
        info = {"userinfo": {"preferred_username": "rita"}, "expires_at": 1e11}
        scope = {"session": {"oauth_info": info}}
        assert hub_username(scope) is None  # no Space
        monkeypatch.setattr("chatbot.auth.hub_login.is_enabled", lambda: True)
        assert hub_username(scope) == "rita" and hub_username({}) is None
        assert hub_username({"session": {"oauth_info": {**info, "expires_at": 1}}}) is None
