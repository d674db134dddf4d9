"""Tests /healthz and /readyz, which supervisors and load balancers ask."""

import sqlite3

import httpx

from chatbot.api.operations import health
from chatbot.engine.engine_status import RUNNERS
from chatbot.service import Service
from feedback.store import Store
from tests.fixtures.conversations import add_answer


def test_health_names_who_speaks_and_what_is_wrong(
    http: httpx.Client, api_service: Service
) -> None:
    health = http.get("/healthz").json()
    assert health["ok"] is True and health["adapter"] == api_service.speaking
    assert health["base"] == api_service.base.name and health["warning"] == ""
    assert health["engine"]["runner"] in RUNNERS.values() and health["engine"]["int8"] is False


def test_ready_is_who_speaks_and_can_keep_what_is_said(
    http: httpx.Client, api_service: Service
) -> None:
    ready = http.get("/readyz")
    assert ready.status_code == 200
    assert ready.json() == {"ready": True, "adapter": api_service.speaking, "warning": ""}


def test_a_database_that_cannot_be_written_is_not_ready(service: Service) -> None:
    service.store.rows("pragma busy_timeout = 20")
    (readyz,) = health.readiness_router(service).routes
    other = sqlite3.connect(service.home.db, isolation_level=None)
    other.execute("begin immediate")
    refused = readyz.endpoint()  # type: ignore[attr-defined]  # on this thread: it waits briefly
    other.close()
    assert refused.status_code == 503
    assert b'"ready":false' in refused.body and b"locked" in refused.body


def test_looking_at_the_database_changes_nothing_and_is_tried_once_a_second(store: Store) -> None:
    add_answer(store, "Hello?")
    before = [store.counts(), store.row("pragma user_version")[0]]  # type: ignore[index]
    database = health.WriteProbe(store)
    assert database.error() == ""
    store.close()
    store.path.rename(store.path.with_suffix(".away"))
    store.path.mkdir()
    assert database.error() == ""
    assert "unable to open" in health.WriteProbe(store).error()
    store.path.rmdir()
    store.path.with_suffix(".away").rename(store.path)
    assert [store.counts(), store.row("pragma user_version")[0]] == before  # type: ignore[index]
