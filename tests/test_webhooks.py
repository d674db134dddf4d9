"""Tests webhooks: a receiver on loopback gets all events, in order, signed, and once."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from chatbot.registry import Registry
from chatbot.webhooks.delivery import WebhookDelivery, WebhookSettings
from feedback.ids import now
from feedback.review.decisions import decide
from feedback.settings import Home, SettingsError
from feedback.store import Store
from tests.fakes.webhook_receiver import SECRET, WebhookReceiver
from tests.fixtures.conversations import add_answer
from tests.fixtures.server_process import SERVER_TOML, ServerProcess

StartDelivery = Callable[..., WebhookDelivery]
Start = Callable[..., ServerProcess]


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    with WebhookReceiver() as receiver:
        yield receiver


@pytest.fixture
def start_delivery(home: Home, store: Store) -> Iterator[StartDelivery]:
    """Return a function that starts deliveries which poll and retry quickly."""
    with ExitStack() as running:

        def start(*urls: str, **settings: Any) -> WebhookDelivery:
            chosen = WebhookSettings(urls=list(urls), secret=SECRET, **settings)
            webhooks = WebhookDelivery(
                home, store, chosen, poll_seconds=0.01, first_retry_seconds=0.02
            )
            running.callback(webhooks.close)
            webhooks.start()
            return webhooks

        yield start


def comments(store: Store, count: int) -> list[str]:
    """Store feedback on an answer; return the ids."""
    id = add_answer(store, "When do you open?")
    return [store.add_feedback(id, "ann", "comment", {"text": f"no. {n}"}) for n in range(count)]


def promotions(store: Store, home: Home, *adapters: str) -> Registry:
    """Promote adapters that have no folder."""
    registry = Registry(store, home)
    for adapter in adapters:
        row = dict.fromkeys(("parent", "base_revision", "snapshot")) | {"base": "tiny"}
        row |= {"id": adapter, "recipe": {}, "lineage": {}, "created_at": now()}
        with store.write() as db:
            db.insert("adapter", row)
        registry.promote(adapter, "person", "eve", "reads better")
    return registry


def test_every_event_is_told_in_order_with_all_it_says(
    store: Store, home: Home, receiver: WebhookReceiver, start_delivery: StartDelivery
) -> None:
    start_delivery(receiver.url)
    id = add_answer(store, "When do you open?", "At noon.")
    value = {"up": False, "reasons": ["wrong"]}
    thumb = store.add_feedback(id, "ann", "thumb", value, "k-1")
    decision = decide(store, id, "bob", "correct", "At nine.", "see the sign")
    promotions(store, home, "a-1", "a-2").rollback("eve")
    receiver.wait(lambda: len(receiver.received) == 5)
    feedback, review, _, _, back = receiver.received
    assert [body["type"] for body in receiver.received] == [
        "feedback.created",
        "review.created",
        *["promotion.created"] * 3,
    ]
    data = feedback["data"]
    assert (data["id"], data["value"], data["person"]) == (thumb, value, "ann")
    assert (data["kind"], data["idempotency_key"]) == ("thumb", "k-1")
    assert feedback["timestamp"] == data["created_at"] == store.feedback_on(id)[0].created_at
    assert data["message"]["question"] == "When do you open?"
    assert data["message"]["answer"] == "At noon."
    assert data["message"]["adapter"] == "a-000000000000"
    assert review["data"].items() >= vars(decision).items()
    values = [back["data"][key] for key in ("adapter", "before", "by", "who", "reason")]
    assert values == ["a-1", "a-2", "person", "eve", "rollback"]
    assert receiver.forged == 0 and receiver.attempts == receiver.ids()


def test_what_fails_is_sent_again_before_anything_later(
    store: Store,
    receiver: WebhookReceiver,
    start_delivery: StartDelivery,
    caplog: pytest.LogCaptureFixture,
) -> None:
    receiver.statuses = [500, 503, 302, 200, 429]
    webhooks = start_delivery(receiver.url)
    first, second = comments(store, 2)
    receiver.wait(lambda: len(receiver.received) == 2)
    assert receiver.attempts == [first] * 4 + [second] * 2
    assert receiver.ids() == [first, second] and receiver.forged == 0
    receiver.wait(lambda: webhooks.pending() == 0)
    warnings = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert "127.0.0.1 fails: it answered 500" in warnings[0] and "events wait" in warnings[0]


def test_a_receiver_that_is_down_is_told_when_it_is_back(
    store: Store, start_delivery: StartDelivery, receiver: WebhookReceiver
) -> None:
    with WebhookReceiver() as down:
        pass
    webhooks = start_delivery(down.url, receiver.url)
    ids = comments(store, 3)
    receiver.wait(lambda: receiver.ids() == ids)
    assert webhooks.pending() == 3
    with WebhookReceiver(port=int(down.url.split(":")[2].split("/")[0])) as back:
        back.wait(lambda: back.ids() == ids)
    assert receiver.attempts == ids


def test_it_goes_on_where_it_was_after_a_restart(
    store: Store, home: Home, receiver: WebhookReceiver, start_delivery: StartDelivery
) -> None:
    webhooks = start_delivery(receiver.url)
    before = comments(store, 2)
    receiver.wait(lambda: receiver.ids() == before)
    receiver.wait(lambda: webhooks.pending() == 0)
    webhooks.close()
    other = Store(home.db)
    meanwhile = comments(other, 2)
    other.close()
    start_delivery(receiver.url)
    receiver.wait(lambda: len(receiver.received) == 4)
    assert receiver.attempts == before + meanwhile


def test_a_new_url_hears_what_happens_from_then_on(
    store: Store, receiver: WebhookReceiver, start_delivery: StartDelivery
) -> None:
    comments(store, 2)
    start_delivery(receiver.url)
    later = comments(store, 1)
    receiver.wait(lambda: receiver.ids() == later)


def test_of_two_servers_on_one_home_one_tells(
    store: Store, receiver: WebhookReceiver, start_delivery: StartDelivery
) -> None:
    one, two = start_delivery(receiver.url), start_delivery(receiver.url)
    ids = comments(store, 20)
    receiver.wait(lambda: one.pending() == 0)
    assert receiver.attempts == ids
    one.close()
    two_says = comments(store, 1)
    receiver.wait(lambda: two.pending() == 0)
    assert receiver.attempts == ids + two_says


def test_only_the_kinds_that_are_wanted_are_told(
    store: Store, home: Home, receiver: WebhookReceiver, start_delivery: StartDelivery
) -> None:
    start_delivery(receiver.url, events=["promotion"])
    comments(store, 2)
    promotions(store, home, "a-1")
    receiver.wait(lambda: len(receiver.received) == 1)
    assert receiver.received[0]["data"]["adapter"] == "a-1"


def test_what_is_erased_is_told_to_nobody(
    store: Store, receiver: WebhookReceiver, start_delivery: StartDelivery
) -> None:
    webhooks = start_delivery(receiver.url)
    webhooks.close()
    erased, stored = comments(store, 2)
    with store.write() as db:
        db.execute("delete from feedback where id = ?", (erased,))
    start_delivery(receiver.url)
    receiver.wait(lambda: receiver.ids() == [stored])


def test_how_far_a_url_has_got_is_one_row(
    store: Store, receiver: WebhookReceiver, start_delivery: StartDelivery
) -> None:
    webhooks = start_delivery(receiver.url)
    comments(store, 5)
    receiver.wait(lambda: len(receiver.received) == 5 and webhooks.pending() == 0)
    (row,) = store.rows("select url, event from delivery")
    assert tuple(row) == (receiver.url, 5)


@pytest.mark.parametrize("url", ["ftp://host/x", "file:///etc/passwd", "host/x", "http://", "h:x"])
def test_only_web_addresses_are_told(home: Home, url: str) -> None:
    home.toml.write_text(f"[webhooks]\nurls = [{url!r}]\n")
    with pytest.raises(SettingsError, match=r"urls.*webhooks"):
        WebhookSettings.read(home)


@pytest.mark.parametrize("secret", ["", "hunter2", "whsec_aHVudGVyMg==", SECRET[6:], "whsec_%%"])
def test_a_secret_that_cannot_sign_is_refused_and_not_repeated(
    home: Home, store: Store, secret: str
) -> None:
    settings = WebhookSettings(urls=["http://127.0.0.1/"], secret=secret)
    with pytest.raises(SettingsError, match="make one with") as refusal:
        WebhookDelivery(home, store, settings)
    assert not secret or secret not in str(refusal.value)


def test_without_urls_no_secret_is_needed(home: Home, store: Store) -> None:
    webhooks = WebhookDelivery(home, store, WebhookSettings.read(home))
    webhooks.start()
    assert webhooks.pending() == 0
    webhooks.close()


@pytest.mark.slow
def test_kill_9_of_the_server_loses_no_event_and_repeats_none(
    start_server: Start, home: Home, receiver: WebhookReceiver
) -> None:
    webhooks = f"[webhooks]\nurls = ['{receiver.url}']\nsecret = '{SECRET}'\n"
    home.toml.write_text(SERVER_TOML + webhooks)
    receiver.statuses = [200] + [500] * 100
    server = start_server().ready()
    body = {"messages": [{"role": "user", "content": "When do you open?"}], "max_tokens": 4}
    completion = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=120).json()
    thumb = {"message_id": completion["id"], "kind": "thumb", "up": True}
    responses = [httpx.post(f"{server.url}/v1/feedback", json=thumb).json() for _ in range(3)]
    receiver.wait(lambda: len(receiver.attempts) > 2)
    server.kill()
    receiver.statuses = []
    store = Store(home.db)
    meanwhile = comments(store, 1)
    store.close()
    server = start_server().ready()
    receiver.wait(lambda: len(receiver.received) == 4)
    assert receiver.ids() == [one["feedback_id"] for one in responses] + meanwhile
    assert receiver.forged == 0
    assert server.stop() == 0
