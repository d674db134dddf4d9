"""Sends hostile values in every field of every route, pages' handlers included: nothing breaks.

The routes are those that the server lists, so a new one is covered by itself.
"""

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from chatbot.api.operations.login import LoginRequest
from chatbot.auth import api_keys
from chatbot.pages.browser_identity import BrowserIdentities
from chatbot.server import ServerSettings, create_app
from chatbot.service import Service
from feedback.curation.curate import curate
from feedback.exemplars import ApprovedAnswer
from feedback.review.decisions import decide
from feedback.settings import Home
from feedback.snapshot import write_snapshot
from feedback.store import Store
from talkback.cycle import run_cycle
from tests.fixtures.conversations import add_answer, add_edit, add_retry
from tests.fixtures.hostile_inputs import (
    HOSTILE,
    TEXTS,
    BodySchema,
    encode,
    hostile_bodies,
    replace_at,
)
from tests.fixtures.http_server import serve_app
from tests.fixtures.lessons import TINY_RECIPE

TOML = """
[engine]
workers = 0
threads = 1
slots = 8
queue = 8
max_length = 512
[chat]
max_tokens = 4
"""
ROLES = ("", "user", "reviewer", "operator")
HIDDEN_BODIES = {("post", "/session"): LoginRequest.model_json_schema()}
"""Routes with a body that the OpenAPI document leaves out."""
EVENTS: dict[str, Any] = {
    "edit": {"index": 1, "value": "Better.", "previous_value": "Hm."},
    "like": {"index": 1, "value": "Hm.", "liked": True},
    "copy": {"value": "Hm."},
    "example_select": {"index": 0, "value": {"text": "Open?"}},
    "select": {"index": 0, "value": "conv_1"},
    "retry": {"index": 1, "value": "Hm."},
    "undo": {"index": 0, "value": "Open?"},
}
"""What a browser sends with these events of the chat."""


@dataclass
class Server:
    """Holds the server under test, and what about its responses was wrong."""

    service: Service
    http: httpx.Client
    headers: dict[str, dict[str, str]]
    known: dict[str, Any]
    faults: list[str] = field(default_factory=list)
    sent: int = 0

    def send(self, method: str, path: str, **options: Any) -> httpx.Response | None:
        """Send a request and check its response."""
        self.sent += 1
        what = f"{method} {path} {str(options.get('content', ''))[:300]}"
        try:
            response = self.http.request(method, path, **options)
        except httpx.TransportError as error:
            self.faults.append(f"{what}: {error!r}")
            return None
        status = response.status_code
        unavailable = status == 503 and "retry-after" not in response.headers
        if status in (500, 502, 504) or unavailable:
            self.faults.append(f"{what}: {status} {response.text[:200]}")
        return response


@pytest.fixture
def server(
    home: Home, tiny_base: Any, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Iterator[Server]:
    """Serve everything without limits; afterwards nothing may be in the log, nor be damaged."""
    home.toml.write_text(TOML + TINY_RECIPE)
    service = Service.open(home, str(tiny_base), poll_seconds=0.1)
    keys = {role: api_keys.create(service.store, f"{role} key", role) for role in ROLES[1:]}
    headers = {role: {"authorization": f"Bearer {key.secret}"} for role, key in keys.items()}
    id = add_answer(service.store, "Open?", "Hm.")
    other = add_retry(service.store, id, "No.")
    add_edit(service.store, id, "From nine.")
    known = {
        "message_id": id,
        "inference_id": id,
        "over": other,
        "conversation_id": service.store.message(id).conversation_id,
        "id": service.speaking,
        "key": keys["user"].secret,
        "answer": "From nine.",
        "action": "correct",
        "max_completion_tokens": 2,
    }
    app = create_app(service, ServerSettings(rate_per_minute=0, max_request_bytes=9_000_000))
    with serve_app(app) as address, httpx.Client(base_url=address, timeout=120) as http:
        server = Server(service, http, {"": {}, **headers}, known)
        yield server
        assert not server.faults, f"{len(server.faults)}:\n" + "\n".join(server.faults[:40])
    printed = "".join(capfd.readouterr())
    assert "Traceback" not in printed, printed[-6000:]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def check_home(home: Home) -> Store:
    """Fail unless the database is whole and can be learned from."""
    store = Store(home.db)
    assert store.row("pragma integrity_check")[0] == "ok"
    indexed = store.rows("select approved_id, question, answer from approved_fts")
    approved = [ApprovedAnswer(**row) for row in store.rows("select * from approved")]
    assert {tuple(row) for row in indexed} == {(a.id, a.question, a.answer) for a in approved}
    texts = [row[0] for row in store.rows("select content from message")]
    assert not [text for text in texts if "\0" in text]
    write_snapshot(curate(store), home.snapshots)
    return store


def fuzz_bodies(server: Server, step: int) -> None:
    """Send every field of every route's body each hostile value."""
    document = server.http.get("/openapi.json").json()
    definitions = document["components"]["schemas"]
    bodies = {
        (method, path): operation["requestBody"]["content"]["application/json"]["schema"]
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if "requestBody" in operation
    }
    number = 0
    for (method, path), schema in {**bodies, **HIDDEN_BODIES}.items():
        for content in hostile_bodies(BodySchema(schema, definitions), server.known):
            number += 1
            if number % step == 0:
                role = ROLES[number // step % len(ROLES)]
                headers = server.headers[role] | {"content-type": "application/json"}
                server.send(method, path.format(**server.known), content=content, headers=headers)


def fuzz_paths(server: Server) -> None:
    """Send every parameter in a path, and the query, header and cookie, hostile texts."""
    document = server.http.get("/openapi.json").json()
    texts = [quote(text[:4000], errors="surrogatepass") for text in TEXTS.values() if text]
    for path, methods in document["paths"].items():
        for method in methods:
            for text in texts:
                url = re.sub(r"{\w+}", text, path)
                headers = server.headers["operator"]
                server.send(method, f"{url}?a={text}", content=b"{}", headers=headers)
    for raw in (b"\xed\xa0\xbd", b"\xff", b"x" * 8000, b"person.\xed\xa0\xbd.b"):
        for name in ("cookie", "authorization", "x-request-id", "sec-fetch-site"):
            prefix = {"cookie": b"talkback_session=", "authorization": b"Bearer tb-"}.get(name, b"")
            server.send("GET", "/v1/models", headers=[(name.encode(), prefix + raw)])
            server.send("GET", "/", headers=[(name.encode(), prefix + raw)])


@dataclass
class Pages:
    """Calls the handlers of the pages as a browser would."""

    server: Server
    role: str
    session: str
    joined: int = 0

    def call(self, handler: dict[str, Any], data: list[Any], event: Any, escaped: bool) -> None:
        """Call a handler: at once, or by the queue."""
        body = {
            "data": data,
            "event_data": event,
            "fn_index": handler["id"],
            "trigger_id": handler["targets"][0][0],
            "session_hash": self.session,
        }
        url = "queue/join" if handler["queue"] else "run/predict"
        headers = self.server.headers[self.role] | {"content-type": "application/json"}
        content = encode(body, escaped)
        response = self.server.send("POST", f"/gradio_api/{url}", content=content, headers=headers)
        if response is not None and response.is_success and handler["queue"]:
            self.joined += 1

    def wait(self) -> None:
        """Wait for all that was joined."""
        options = {"params": {"session_hash": self.session}, "timeout": 120}
        if not self.joined:
            return
        with self.server.http.stream("GET", "/gradio_api/queue/data", **options) as response:
            for line in response.iter_lines():
                self.joined -= '"msg": "process_completed"' in line or "process_completed" in line
                if self.joined == 0:
                    break


def fuzz_pages(server: Server, step: int) -> None:
    """Send every input of every handler of the pages each hostile value."""
    config = server.http.get("/config").json()
    kinds = {component["id"]: component["type"] for component in config["components"]}
    handlers = [one for one in config["dependencies"] if one["backend_fn"]]
    loads = [one for one in handlers if one["targets"][0][1] == "load"]
    number = 0
    for handler in handlers:
        for turn, role in enumerate(ROLES):
            if step > 1 and handler["id"] % len(ROLES) != turn:
                continue
            pages = Pages(server, role, f"s{handler['id']}{role}")
            for load in loads:
                pages.call(load, [None for _ in load["inputs"]], None, True)
            pages.wait()
            valid = page_inputs(server, handler, kinds)
            event = EVENTS.get(handler["targets"][0][1])
            pages.call(handler, valid, event, True)
            whole = {"data": valid, "event": event}
            for path in value_paths(whole):
                for value in HOSTILE:
                    number += 1
                    if number % step == 0 and (step > 1 or number % len(ROLES) == turn):
                        changed = replace_at(whole, path, value)
                        pages.call(handler, changed["data"], changed["event"], bool(number & 1))
            pages.wait()


def page_inputs(server: Server, handler: dict[str, Any], kinds: dict[int, str]) -> list[Any]:
    """Return what a browser sends of a handler's inputs when all is well."""
    id, conversation = server.known["message_id"], server.known["conversation_id"]
    token = BrowserIdentities(server.service.home.root)._signer.sign("ann")
    browser = iter([token, {"conversation": conversation, "leaf": id}])
    history = [
        {"role": role, "content": [{"type": "text", "text": text}], "metadata": {"id": id}}
        for role, text in (("user", "Open?"), ("assistant", "Hm."))
    ]
    values: dict[str, Callable[[], Any]] = {
        "browserstate": lambda: next(browser),
        "chatbot": lambda: history,
        "checkboxgroup": list,
        "radio": lambda: conversation if "conversation" in handler["api_name"] else id,
        "textbox": lambda: "Hello",
    }
    return [values.get(kinds.get(one, ""), lambda: None)() for one in handler["inputs"]]


def value_paths(whole: Any) -> list[tuple[str | int, ...]]:
    """Return the paths of all values below the top, and of `data` and `event` themselves."""
    found: list[tuple[str | int, ...]] = []

    def walk(value: Any, path: tuple[str | int, ...]) -> None:
        if path:
            found.append(path)
        if isinstance(value, dict | list):
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            for key, below in pairs:
                walk(below, (*path, key))

    walk(whole, ())
    return found


def test_nothing_that_a_request_can_hold_breaks_the_server(server: Server, home: Home) -> None:
    fuzz_bodies(server, 29)
    fuzz_pages(server, 31)
    check_home(home)


@pytest.mark.slow
def test_no_field_of_any_route_breaks_the_server_or_the_next_cycle(
    server: Server, home: Home
) -> None:
    fuzz_bodies(server, 1)
    fuzz_paths(server)
    fuzz_pages(server, 1)
    for number in range(6):
        id = add_answer(server.service.store, f"Question {number} of six?", "Hm.")
        decide(server.service.store, id, "rita", "correct", f"Answer {number}.")
    check_home(home)
    outcome = run_cycle(home, force=True)
    assert outcome.kind not in ("failed", "nothing to do"), outcome
