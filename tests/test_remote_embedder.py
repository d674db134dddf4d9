"""An embeddings server: what is asked of it, and what a turn does while it is down."""

import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from feedback.exemplars import find_exemplars
from feedback.matching import remote_embedder
from feedback.matching.embedding import EmbedderError
from feedback.matching.remote_embedder import EmbedderSettings, RemoteEmbedder, open_embedder
from feedback.review.decisions import decide
from feedback.settings import Home, SettingsError
from feedback.store import Store
from tests.fixtures.conversations import add_answer
from tests.fixtures.http_server import serve_app

TOPICS = ("refund", "hours")
"""What the scripted server tells apart."""


class EmbeddingsServer:
    """Embeds by topic; ``answers`` scripts other responses, the next first."""

    def __init__(self) -> None:
        self.requests: list[tuple[str | None, dict[str, Any]]] = []
        self.answers: list[Response] = []
        self.url = ""

    async def embed(self, request: Request) -> Response:
        body = await request.json()
        self.requests.append((request.headers.get("authorization"), body))
        if self.answers:
            return self.answers.pop(0)
        data = [
            {"index": n, "embedding": [float(topic in text.lower()) for topic in TOPICS] + [0.5]}
            for n, text in enumerate(body["input"])
        ]
        return JSONResponse({"data": data[::-1]})


@pytest.fixture
def server() -> Iterator[EmbeddingsServer]:
    scripted = EmbeddingsServer()
    app = Starlette(routes=[Route("/v1/embeddings", scripted.embed, methods=["POST"])])
    with serve_app(app) as scripted.url:
        yield scripted


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "talkback.db")


@pytest.fixture
def embedder(server: EmbeddingsServer) -> Iterator[RemoteEmbedder]:
    settings = EmbedderSettings(url=server.url, model="some-model", api_key="secret")
    with closing(RemoteEmbedder(settings)) as opened:
        yield opened


def approve(store: Store, question: str, answer: str) -> str:
    decide(store, add_answer(store, question), "rita", "correct", answer)
    return str(store.rows("select id from approved order by rowid desc limit 1")[0]["id"])


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/embeddings"])
def test_the_address_may_be_the_server_or_the_whole(server: EmbeddingsServer, path: str) -> None:
    settings = EmbedderSettings(url=server.url + path, model="some-model")
    with closing(RemoteEmbedder(settings)) as embedder:
        one, other = embedder.embed(["a refund", "our hours"])
    assert one.argmax() == 0 and other.argmax() == 1, "by their index, not by their order"
    assert one @ one == pytest.approx(1)
    assert server.requests[0][1]["model"] == "some-model" and server.requests[0][0] is None


def test_its_vectors_find_and_are_kept_under_its_name(
    server: EmbeddingsServer, embedder: RemoteEmbedder, store: Store
) -> None:
    id = approve(store, "Refund, please, what then?", "Within 30 days.")
    approve(store, "Which hours do you keep?", "From 9.")
    for _ in range(2):
        found = find_exemplars(store, "¿Cómo va un refund?", embedder=embedder)
        assert [one.id for one in found] == [id]
    kept = store.rows("select distinct embedder from approved_vector")
    assert [row["embedder"] for row in kept] == [f"{server.url}/v1/embeddings some-model"]
    assert {key for key, _ in server.requests} == {"Bearer secret"}
    texts = [text for _, body in server.requests for text in body["input"]]
    assert len(texts) == 5, "each text once"


def test_no_text_that_somebody_asks_makes_it_fail(
    server: EmbeddingsServer, embedder: RemoteEmbedder
) -> None:
    assert embedder.embed(["", " ", "half an emoji \ud83d", "a\0b", "refund " * 9000]).shape == (
        5,
        3,
    )
    sent = server.requests[0][1]["input"]
    assert all(sent) and max(map(len, sent)) <= 1000


FAILURES = {
    "refused": Response(status_code=503),
    "no JSON": Response("<html>"),
    "too few": JSONResponse({"data": []}),
    "no numbers": JSONResponse({"data": [{"index": 0, "embedding": ["x"]}]}),
    "other": JSONResponse({"error": "no such model"}),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_leaves_the_static_vectors_and_one_warning(
    server: EmbeddingsServer,
    embedder: RemoteEmbedder,
    store: Store,
    caplog: pytest.LogCaptureFixture,
    failure: str,
) -> None:
    id = approve(store, "I want to send my order back", "You get your money within 30 days.")
    server.answers = [FAILURES[failure]]
    with caplog.at_level(logging.WARNING, "talkback"):
        for asked in ("Can I get a refund?", "Do I get my money back?"):
            found = find_exemplars(store, asked, embedder=embedder)
            assert [one.id for one in found] == [id]
    assert len(server.requests) == 1, "it is left alone for a while"
    (record,) = caplog.records
    assert server.url in record.getMessage() and "[embedder]" in record.getMessage()


def test_a_server_that_is_nowhere_is_an_embedder_error() -> None:
    settings = EmbedderSettings(url="http://127.0.0.1:9", timeout=0.5)
    with (
        closing(RemoteEmbedder(settings)) as embedder,
        pytest.raises(EmbedderError, match=r"127.0.0.1:9/v1/embeddings gives no vectors"),
    ):
        embedder.embed(["a"])


def test_after_a_while_it_is_asked_again(
    server: EmbeddingsServer, embedder: RemoteEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_embedder, "RETRY_SECONDS", 0)
    server.answers = [Response(status_code=503)]
    with pytest.raises(EmbedderError):
        embedder.embed(["a refund"])
    assert embedder.embed(["a refund"]).shape == (1, 3)


def test_without_a_url_the_static_one_serves(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_embedder(home) is None
    home.toml.write_text('[embedder]\nurl = "http://gpu1:8000"\nmodel = "m"\n')
    monkeypatch.setenv("TALKBACK_EMBEDDER_API_KEY", "secret")
    opened = open_embedder(home)
    assert opened is not None and opened.name == "http://gpu1:8000/v1/embeddings m"
    assert EmbedderSettings.read(home).api_key == "secret"


def test_an_address_without_a_scheme_is_refused(home: Home) -> None:
    home.toml.write_text('[embedder]\nurl = "gpu1:8000"\n')
    with pytest.raises(SettingsError, match="write it as http://host:port"):
        open_embedder(home)
