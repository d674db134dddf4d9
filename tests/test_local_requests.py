"""Tries who is taken for this machine's own: a table of proxies and names, and a real nginx."""

import logging
import re
from collections.abc import Iterator

import httpx
import pytest
from starlette.requests import HTTPConnection

from chatbot.auth import api_keys
from chatbot.auth.access import Access
from chatbot.auth.local_requests import is_loopback_host, remote_trait
from chatbot.server import OPEN_HOUSE, ServerSettings, access_for_host, create_api, create_app
from chatbot.service import Service
from feedback.settings import Home, SettingsError
from feedback.store import Store
from tests.fakes.scripted_engine import ScriptedEngine, open_service
from tests.fixtures.api_client import MESSAGES
from tests.fixtures.http_server import serve_app
from tests.fixtures.nginx import NGINX, serve_nginx

LOCAL_HOSTS = (
    "localhost",
    "LocalHost:8000",
    "localhost.:8000",
    "127.0.0.1",
    "127.0.0.1:8000",
    "127.1.2.3:80",
    "[::1]",
    "[::1]:8000",
    "[0:0:0:0:0:0:0:1]:8000",
    "[::ffff:127.0.0.1]:8000",
)
OTHER_HOSTS = (
    "",
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.nip.io",
    "evil-localhost",
    "127.0.0.1@evil.example",
    "127.0.0.1:80@evil.example",
    "127.0.0.1:8000, evil.example",
    "localhost:evil",
    "0.0.0.0:8000",
    "[::]:8000",
    "192.168.1.5:8000",
    "2130706433",
    "::1",
    "localhost/",
)
PROXY_HEADERS = {
    "X-Forwarded-For": "127.0.0.1",
    "X-Forwarded-Host": "localhost",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Port": "443",
    "X-Forwarded-Server": "front",
    "X-Forwarded-Prefix": "/",
    "X-Forwarded-User": "ann",
    "X-Forwarded": "for=127.0.0.1",
    "Forwarded": "for=127.0.0.1",
    "Forwarded-For": "127.0.0.1",
    "X-Real-IP": "::1",
    "X-Client-IP": "127.0.0.1",
    "Client-IP": "127.0.0.1",
    "X-Cluster-Client-IP": "127.0.0.1",
    "True-Client-IP": "127.0.0.1",
    "CF-Connecting-IP": "127.0.0.1",
    "CF-Ray": "8a",
    "CDN-Loop": "cloudflare",
    "Fastly-Client-IP": "127.0.0.1",
    "Fly-Client-IP": "127.0.0.1",
    "Fly-Region": "fra",
    "X-Azure-ClientIP": "127.0.0.1",
    "X-Envoy-External-Address": "127.0.0.1",
    "X-Amzn-Trace-Id": "Root=1",
    "X-Amz-Cf-Id": "1",
    "X-Original-URL": "/",
    "X-Original-Host": "localhost",
    "X-Original-Forwarded-For": "127.0.0.1",
    "X-Rewrite-URL": "/",
    "X-ProxyUser-Ip": "127.0.0.1",
    "WL-Proxy-Client-IP": "127.0.0.1",
    "Proxy-Connection": "keep-alive",
    "X-Remote-Addr": "127.0.0.1",
    "X-Remote-User": "ann",
    "Remote-User": "ann",
    "Max-Forwards": "10",
    "Via": "1.1 varnish",
    "Tailscale-User-Login": "ann@example.com",
    "Tailscale-Headers-Info": "x",
    "Ngrok-Skip-Browser-Warning": "1",
    "Front-End-Https": "on",
    "X-Scheme": "https",
    "X_Forwarded_For": "127.0.0.1",
    "x-forwarded-for": "",
}
OTHER_SITES = (
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "https://127.0.0.1:8000"},  # TLS is a proxy's
    {"Origin": "http://127.0.0.1:3000"},
    {"Origin": "http://localhost:8000"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:3000"},
    {"Referer": "http://evil.example/page"},
    {"Referer": "http://127.0.0.1:8000.evil.example/"},
)
CLIENTS: tuple[dict[str, str], ...] = (
    {},
    {"User-Agent": "curl/8.9", "Accept": "*/*"},
    {"Authorization": "Bearer any", "X-Stainless-Lang": "python", "Connection": "keep-alive"},
    {
        "Origin": "http://127.0.0.1:8000",
        "Referer": "http://127.0.0.1:8000/review",
        "Sec-Fetch-Site": "same-origin",
        "Sec-CH-UA-Platform": '"Linux"',
        "Connection": "keep-alive",
        "Accept-Encoding": "gzip, deflate, br, zstd",
        "Cache-Control": "max-age=0",
        "Upgrade-Insecure-Requests": "1",
        "DNT": "1",
        "If-None-Match": "x",
    },
    {"Sec-Fetch-Site": "none", "Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c"},
)


def trait(
    client: tuple[str, int] | None = ("127.0.0.1", 5),
    server: tuple[str, int | None] = ("127.0.0.1", 8000),
    version: str = "1.1",
    **headers: str,
) -> str:
    """Return what shows that a request with these headers is not this machine's own."""
    sent = {"Host": "127.0.0.1:8000", **headers}
    scope = {
        "type": "http",
        "http_version": version,
        "client": client,
        "server": server,
        "scheme": "http",
        "headers": [(key.lower().encode(), value.encode()) for key, value in sent.items()],
    }
    return remote_trait(HTTPConnection(scope))


@pytest.mark.parametrize("host", LOCAL_HOSTS)
def test_a_name_of_this_machine_is_local(host: str) -> None:
    assert trait(Host=host) == ""


@pytest.mark.parametrize("host", OTHER_HOSTS)
def test_any_other_name_is_not_local(host: str) -> None:
    assert "Host" in trait(Host=host)


def test_two_hosts_or_none_are_not_local() -> None:
    scope = {"type": "http", "client": ("127.0.0.1", 5), "server": ("127.0.0.1", 8000)}
    for hosts in ([], [b"localhost", b"evil.example"], [b"localhost", b"localhost"]):
        headers = [(b"host", host) for host in hosts]
        assert "Host" in remote_trait(HTTPConnection({**scope, "headers": headers}))


@pytest.mark.parametrize("name", PROXY_HEADERS)
def test_a_header_of_proxies_is_not_local_whatever_it_says(name: str) -> None:
    assert "proxies" in trait(**{name: PROXY_HEADERS[name]})


@pytest.mark.parametrize("headers", OTHER_SITES)
def test_a_page_of_another_site_is_not_local(headers: dict[str, str]) -> None:
    assert "another site" in trait(**headers)


@pytest.mark.parametrize("headers", CLIENTS)
def test_what_clients_and_browsers_send_by_themselves_is_local(headers: dict[str, str]) -> None:
    assert trait(**headers) == ""


def test_a_connection_of_a_proxy_is_not_local() -> None:
    assert "connection" in trait(version="1.0")
    assert "connection" in trait(Connection="close")
    assert "connection" in trait(Connection="upgrade")


def test_the_peer_is_this_machine() -> None:
    for peer in ("127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"):
        assert trait(client=(peer, 5)) == ""
    for peer in ("192.0.2.7", "::ffff:192.0.2.7", "testclient", "172.17.0.1", ""):
        assert "another machine" in trait(client=(peer, 5))
    assert trait(client=None, server=("/run/talkback.sock", None)) == ""
    assert "another machine" in trait(client=None)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False)],
)
def test_loopback_is_only_this_machine(host: str, loopback: bool) -> None:
    assert is_loopback_host(host) is loopback


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = open_service(tmp_path_factory.mktemp("local"), ScriptedEngine(pause=0))
    yield service
    service.close()


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    """Serve a home without a key and without limits: all is open to this machine."""
    with serve_app(create_app(service, ServerSettings(rate_per_minute=0))) as url:
        yield url


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=30) as http:
        yield http


def statuses(http: httpx.Client, url: str, **headers: str) -> tuple[int, int]:
    """Return how the server answers whoever looks at the adapters, and whoever rolls back."""
    listed = http.get(f"{url}/v1/adapters", headers=headers)
    body = {"reason": ""}
    rolled_back = http.post(f"{url}/v1/adapters/rollback", json=body, headers=headers)
    return listed.status_code, rolled_back.status_code


OPEN, CLOSED = (200, 400), (401, 401)
"""Whoever may roll back is told that a reason is missing."""


def test_an_open_home_is_closed_to_names_proxies_and_other_sites(
    http: httpx.Client, url: str
) -> None:
    port = url.rpartition(":")[2]
    assert statuses(http, url) == OPEN
    assert statuses(http, url, Host=f"localhost:{port}") == OPEN
    assert statuses(http, url, Host="evil.example") == CLOSED
    for name, value in PROXY_HEADERS.items():
        assert statuses(http, url, **{name: value}) == CLOSED, name
    for headers in OTHER_SITES:
        assert statuses(http, url, **headers) == CLOSED, headers


def test_the_pages_handlers_are_closed_with_the_api(http: httpx.Client, url: str) -> None:
    """Call the adapters page's rollback past the page, queued, with the answer as a stream."""
    config = http.get(f"{url}/config").json()["dependencies"]
    roll_back = next(one for one in config if "roll_back" in str(one["api_name"]))
    body = {"fn_index": roll_back["id"], "data": [None] * len(roll_back["inputs"])}
    remote: tuple[dict[str, str], ...] = ({"Host": "evil.example"}, {"Via": "x"}, *OTHER_SITES)
    for number, headers in enumerate(({}, *remote)):
        session = {"session_hash": f"s{number}"}
        joined = http.post(f"{url}/gradio_api/queue/join", json=body | session, headers=headers)
        assert joined.is_success, (headers, joined.text)
        output = http.get(f"{url}/gradio_api/queue/data", params=session, headers=headers).text
        assert ("This needs a key of role operator" in output) is (number > 0), output


def test_a_page_of_another_site_says_nothing_without_a_key(
    http: httpx.Client, url: str, service: Service
) -> None:
    before = service.store.counts()
    evil = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
    body = {"messages": MESSAGES}
    refused = http.post(f"{url}/v1/chat/completions", json=body, headers=evil)
    assert refused.status_code == 401 and service.store.counts() == before
    service.access.cors_origins = frozenset({"https://evil.example"})
    allowed = http.post(f"{url}/v1/chat/completions", json=body, headers=evil)
    service.access.cors_origins = frozenset()
    assert allowed.status_code == 200
    assert statuses(http, url, **evil) == CLOSED


def test_why_a_request_is_not_local_is_logged_once(
    store: Store, home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    access = Access(store, home.root)
    scope = {"type": "http", "client": ("127.0.0.1", 5), "headers": [(b"host", b"evil.example")]}
    with caplog.at_level(logging.WARNING, "talkback"):
        for _ in range(3):
            assert access.identify(HTTPConnection(scope)).role == "user"
    assert len(caplog.records) == 1
    assert "its Host" in caplog.text and "talkback keys add" in caplog.text


def test_behind_a_proxy_that_is_named_there_is_a_key_from_the_first_start(
    store: Store, home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    assert access_for_host(store, home, ServerSettings(), "127.0.0.1").loopback
    assert capsys.readouterr().out == f"{OPEN_HOUSE}\n"
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "127.0.0.1, 10.0.0.0/8")
    assert ServerSettings().trusted_proxies == ["127.0.0.1", "10.0.0.0/8"]
    access = access_for_host(store, home, ServerSettings(), "127.0.0.1")
    assert not access.loopback
    token = re.search(r"review page's token is (\S+)", capsys.readouterr().out)
    assert token is not None
    api_keys.create(store, "rita", "reviewer")
    access_for_host(store, home, ServerSettings(), "127.0.0.1")
    access_for_host(store, home, ServerSettings(trusted_proxies=[]), "127.0.0.1")
    assert capsys.readouterr().out == ""


def test_a_proxy_is_named_by_its_address(home: Home) -> None:
    home.toml.write_text("[server]\ntrusted_proxies = ['10.0.0.0/8', '::1', '*']\n")
    assert ServerSettings.read(home).trusted_proxies == ["10.0.0.0/8", "::1", "*"]
    home.toml.write_text("[server]\ntrusted_proxies = ['nginx']\n")
    with pytest.raises(SettingsError, match=r"trusted_proxies.*'nginx'.*network"):
        ServerSettings.read(home)


PROXY_PASS = {
    "bare": "",
    "keeping Host": "proxy_set_header Host $host;",
    "keeping Host and its port": "proxy_set_header Host $http_host;",
    "HTTP/1.1": "proxy_http_version 1.1;",
    "for websockets": "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; "
    "proxy_set_header Connection upgrade;",
    "X-Real-IP": "proxy_http_version 1.1; proxy_set_header Connection ''; "
    "proxy_set_header X-Real-IP $remote_addr;",
    "X-Forwarded-For": "proxy_http_version 1.1; proxy_set_header Connection ''; "
    "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;",
    "X-Forwarded-For replaced": "proxy_set_header X-Forwarded-For $remote_addr;",
    "Forwarded": "proxy_set_header Host localhost; proxy_set_header Forwarded for=$remote_addr;",
}
needs_nginx = pytest.mark.skipif(
    NGINX is None, reason="install nginx (apt-get install nginx-light)"
)


@needs_nginx
def test_behind_a_real_nginx_nobody_is_operator(http: httpx.Client, url: str) -> None:
    assert statuses(http, url) == OPEN
    with serve_nginx(url, PROXY_PASS) as proxies:
        for name, proxy in proxies.items():
            for headers in (
                {},
                {"X-Forwarded-For": "127.0.0.1"},
                {"Host": "shop.example"},
                {"Host": "localhost", "Connection": "keep-alive"},
                {"Origin": proxy, "Sec-Fetch-Site": "same-origin"},
            ):
                assert statuses(http, proxy, **headers) == CLOSED, (name, headers)
            body = {"messages": MESSAGES}
            chat = http.post(f"{proxy}/v1/chat/completions", json=body)
            assert chat.status_code == 200, name


def guess_tokens(url: str, address: str, **headers: str) -> list[int]:
    """Log in from an address of this machine with five wrong tokens."""
    transport = httpx.HTTPTransport(local_address=address)
    with httpx.Client(base_url=url, transport=transport, headers=headers) as http:
        return [http.post("/session", json={"key": f"owl-{i}"}).status_code for i in range(5)]


@needs_nginx
def test_visitors_of_a_proxy_are_counted_apart_once_it_is_named(service: Service) -> None:
    usual = service.access
    for trusted, other in (([], [429] * 5), (["127.0.0.1"], [401, 401, 429, 429, 429])):
        service.access = Access(service.store, service.home.root, token="owl")
        settings = ServerSettings(trusted_proxies=trusted)
        with serve_app(create_api(service, settings)) as url, serve_nginx(url, PROXY_PASS) as to:
            assert guess_tokens(to["X-Forwarded-For"], "127.0.0.2")[:3] == [401, 401, 429]
            assert guess_tokens(to["X-Forwarded-For"], "127.0.0.3") == other
    service.access = usual


@needs_nginx
@pytest.mark.parametrize("trusted", [[], ["127.0.0.1"]])
def test_addresses_that_a_visitor_makes_up_buy_no_guesses(
    service: Service, trusted: list[str]
) -> None:
    usual = service.access
    service.access = Access(service.store, service.home.root, token="owl")
    settings = ServerSettings(trusted_proxies=trusted)
    way = "X-Forwarded-For" if trusted else "bare"
    with serve_app(create_api(service, settings)) as url, serve_nginx(url, PROXY_PASS) as to:
        found = [
            guess_tokens(to[way], "127.0.0.2", **{"X-Forwarded-For": f"192.0.2.{i}"})[0]
            for i in range(4)
        ]
    service.access = usual
    assert found == [401, 429, 429, 429]
