"""Tests rate limits, body limits and CORS over real HTTP."""

import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.requests import HTTPConnection

from chatbot.api import errors
from chatbot.api.limits import MAX_TRACKED_CALLERS, TokenBuckets, client_address, is_rate_limited
from chatbot.auth import api_keys
from chatbot.auth.access import Access
from chatbot.auth.sessions import COOKIE_NAME
from chatbot.server import ServerSettings, add_request_guards, create_app
from chatbot.service import Service
from feedback.store import Store
from tests.fakes.scripted_engine import ScriptedEngine, open_service
from tests.fixtures.api_client import MESSAGES, read_error
from tests.fixtures.http_server import serve_app


@contextmanager
def guarded(store: Store, *, loopback: bool = True, **settings: object) -> Iterator[httpx.Client]:
    """Serve an app that returns a body's length, behind the request guards; yield a client."""
    app = FastAPI()
    errors.add_error_handlers(app)
    access = Access(store, store.path.parent, loopback=loopback)
    add_request_guards(app, access, ServerSettings(**settings))

    @app.post("/v1/length")
    async def length(request: Request) -> int:
        return len(await request.body())

    @app.get("/healthz")
    def healthz() -> bool:
        return True

    with serve_app(app) as url, httpx.Client(base_url=url) as http:
        yield http


def test_a_bucket_lets_a_burst_pass_and_fills_again() -> None:
    moment = [0.0]
    bucket = TokenBuckets(rate=60, burst=2, clock=lambda: moment[0])
    assert [bucket.take("ann") for _ in range(3)] == [0, 0, 1]
    assert bucket.take("bob") == 0
    moment[0] = 0.5
    assert bucket.take("ann") == pytest.approx(0.5)
    moment[0] = 1.0
    assert bucket.take("ann") == 0
    moment[0] = 100.0
    assert [bucket.take("ann") for _ in range(3)] == [0, 0, 1]


def test_strangers_do_not_fill_the_memory() -> None:
    bucket = TokenBuckets(rate=1, burst=1)
    for number in range(MAX_TRACKED_CALLERS + 100):
        bucket.take(str(number))
    assert len(bucket._buckets) == MAX_TRACKED_CALLERS


def test_too_many_requests_are_told_when_to_come_again(store: Store) -> None:
    with guarded(store, rate_per_minute=6, burst=2) as http:
        answers = [http.post("/v1/length", content=b"x") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        _, error = read_error(answers[2])
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limited")
        assert 1 <= int(answers[2].headers["retry-after"]) <= 11
        assert http.get("/healthz").status_code == 200


def test_a_key_has_a_count_of_its_own_and_a_wrong_one_has_none(store: Store) -> None:
    ann = api_keys.create(store, "ann", "user")
    with guarded(store, rate_per_minute=1, burst=1) as http:

        def ask(key: str) -> int:
            return http.post("/v1/length", headers={"Authorization": f"Bearer {key}"}).status_code

        assert [ask(ann.secret), ask(ann.secret)] == [200, 429]
        assert [ask("tb-guess-1"), ask("tb-guess-2"), ask("sk-none")] == [200, 429, 429]


def test_where_others_reach_the_server_there_is_a_limit_by_default(store: Store) -> None:
    for loopback, limited in ((True, False), (False, True)):
        with guarded(store, loopback=loopback, burst=1) as http:
            codes = [http.post("/v1/length").status_code for _ in range(5)]
            assert (429 in codes) is limited


def test_a_body_is_whole_up_to_the_limit_and_refused_beyond_it(store: Store) -> None:
    with guarded(store, max_request_bytes=1000) as http:
        assert http.post("/v1/length", content=b"x" * 1000).json() == 1000
        assert http.post("/v1/length", content=iter([b"x" * 400] * 2)).json() == 800
        assert http.post("/v1/length").json() == 0
        for body in (b"x" * 1001, iter([b"x" * 400] * 3)):
            status, error = read_error(http.post("/v1/length", content=body))
            assert (status, error["code"]) == (413, "request_too_large")


def test_a_body_without_end_is_not_read_to_its_end(store: Store) -> None:
    sent = [0]

    def endless() -> Iterator[bytes]:
        while sent[0] < 200_000_000:
            sent[0] += 100_000
            yield b"x" * 100_000

    # The server may have hung up while the client was still sending.
    with guarded(store, max_request_bytes=1000) as http, suppress(httpx.TransportError):
        assert http.post("/v1/length", content=endless()).status_code == 413
    assert sent[0] < 200_000_000


def test_other_sites_may_ask_only_when_they_are_named(store: Store) -> None:
    origin = {"Origin": "https://shop.example"}
    preflight = {**origin, "Access-Control-Request-Method": "POST"}
    with guarded(store) as http:
        assert "access-control-allow-origin" not in http.get("/healthz", headers=origin).headers
        assert http.options("/v1/length", headers=preflight).status_code == 400
    with guarded(store, cors_origins=["https://shop.example"], rate_per_minute=1, burst=1) as http:
        allowed = http.options("/v1/length", headers=preflight)
        assert allowed.headers["access-control-allow-origin"] == origin["Origin"]
        answers = [http.post("/v1/length", headers=origin) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 429]
        for answer in answers:  # a script must be able to read why it was refused
            assert answer.headers["access-control-allow-origin"] == origin["Origin"]
        other = http.get("/healthz", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers


def test_ipv6_is_counted_by_network() -> None:
    def at(host: str) -> str:
        return client_address(HTTPConnection({"type": "http", "client": (host, 1), "headers": []}))

    assert at("2001:db8::1") == at("2001:db8::ffff") != at("2001:db8:0:1::1")
    assert ipaddress.ip_network(at("2001:db8::1")).prefixlen == 64
    assert at("192.0.2.1") != at("192.0.2.2")


@pytest.mark.parametrize(
    ("method", "path", "costs"),
    [
        ("POST", "/v1/chat/completions", True),
        ("GET", "/v1/reviews/next", True),
        ("POST", "/session", True),
        ("POST", "/gradio_api/queue/join", True),
        ("POST", "/gradio_api/run/predict", False),
        ("GET", "/review", False),
        ("GET", "/healthz", False),
    ],
)
def test_what_costs_is_counted(method: str, path: str, costs: bool) -> None:
    assert is_rate_limited(method, path) is costs


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Open a service with a review token, which can be guessed."""
    service = open_service(tmp_path_factory.mktemp("limits"), ScriptedEngine(pause=0))
    service.access = Access(service.store, service.home.root, token="owl")
    yield service
    service.close()


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    with serve_app(create_app(service)) as url:
        yield url


@contextmanager
def client_at(url: str, last: int, **headers: str) -> Iterator[httpx.Client]:
    """Open a client with an address of its own, which by its header comes through a proxy."""
    transport = httpx.HTTPTransport(local_address=f"127.0.1.{last}")
    headers = {"Via": "1.1 front", **headers}
    with httpx.Client(base_url=url, transport=transport, headers=headers) as http:
        yield http


GUESSES: list[tuple[str, str, dict[str, str], object]] = [
    ("GET", "/v1/adapters", {"Authorization": "Bearer tb-guess"}, None),
    ("GET", "/v1/adapters", {"Authorization": "bearer  owl2"}, None),
    ("GET", "/metrics", {"Authorization": "Bearer owl2"}, None),
    ("GET", "/v1/adapters", {"Cookie": f"{COOKIE_NAME}=key-1.9999999999.00"}, None),
    ("POST", "/v1/chat/completions", {"Authorization": "Bearer tb-guess"}, {"messages": MESSAGES}),
    ("POST", "/session", {}, {"key": "owl2"}),
    ("POST", "/session", {}, {"key": "tb-guess"}),
]


@pytest.mark.parametrize("number", range(len(GUESSES)))
def test_a_wrong_secret_counts_ten_times(url: str, number: int) -> None:
    method, path, headers, body = GUESSES[number]
    with client_at(url, number + 1, **headers) as http:
        codes = [http.request(method, path, json=body).status_code for _ in range(4)]
        assert codes == [401, 401, 429, 429]


def test_a_wrong_secret_counts_ten_times_on_the_pages(url: str) -> None:
    """The handlers of a page answer 200, with the refusal in the stream."""
    config = httpx.get(f"{url}/config").json()
    decide = next(one for one in config["dependencies"] if "decide" in str(one["api_name"]))
    body = {"data": [None] * len(decide["inputs"]), "fn_index": decide["id"], "session_hash": "s"}
    with client_at(url, 50, Authorization="Bearer owl2") as http:
        codes = [http.post("/gradio_api/run/predict", json=body).status_code for _ in range(4)]
    assert codes[2:] == [429, 429]


def test_a_client_that_sends_any_key_where_none_is_needed_does_not_guess(url: str) -> None:
    with client_at(url, 60, Authorization="Bearer any") as http:
        body = {"messages": MESSAGES}
        codes = [http.post("/v1/chat/completions", json=body).status_code for _ in range(8)]
        assert codes == [200] * 8


def test_who_has_guessed_too_often_does_not_learn_what_is_right(url: str, service: Service) -> None:
    rita = api_keys.create(service.store, "rita", "reviewer")
    with client_at(url, 70) as http:

        def ask(secret: str) -> int:
            bearer = {"Authorization": f"Bearer {secret}"}
            return http.get("/v1/adapters", headers=bearer).status_code

        assert [ask(f"owl{i}") for i in range(3)] == [401, 401, 429]
        assert ask("owl") == 429
        assert http.post("/session", json={"key": "owl"}).status_code == 429
        assert ask(rita.secret) == 200  # nobody guesses a key: its owner is not kept out


def test_at_home_all_but_guesses_is_unlimited(url: str) -> None:
    with httpx.Client(base_url=url) as http:
        assert [http.get("/v1/models").status_code for _ in range(70)] == [200] * 70
        guesses = [http.post("/session", json={"key": f"owl{i}"}).status_code for i in range(4)]
        assert guesses[0] == 401 and guesses[-1] == 429
        assert http.get("/v1/models").status_code == 200


def test_clients_of_a_socket_for_both_versions_are_counted_apart() -> None:
    def at(host: str) -> str:
        return client_address(HTTPConnection({"type": "http", "client": (host, 1), "headers": []}))

    assert at("::ffff:192.0.2.1") == at("192.0.2.1") != at("::ffff:192.0.2.2")
