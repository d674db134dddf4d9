"""An exchange: an answer, the question before it, who asked and who answered."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from feedback.curation.curate import CurateSettings, curate
from feedback.messages import NotFoundError
from feedback.review.decisions import decide
from feedback.review.queue import list_pending
from feedback.store import Store
from tests.fixtures.conversations import SPEAKER, add_answer, add_retry


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "talkback.db")


class CountingStore(Store):
    """A store that counts the queries that read it."""

    queries = 0

    def rows(self, sql: str, args: tuple[object, ...] | Mapping[str, object] = ()) -> list[Any]:
        self.queries += 1
        return super().rows(sql, args)

    def row(self, sql: str, args: tuple[object, ...] | Mapping[str, object] = ()) -> Any | None:
        self.queries += 1
        return super().row(sql, args)


def corrected_and_chosen(path: Path, number: int) -> CountingStore:
    """A store with this many answers of each kind: corrected, chosen, edited and commented on."""
    store = CountingStore(path / f"{number}.db")
    for n in range(number):
        decide(store, add_answer(store, f"What is item {n}?"), "rita", "correct", f"It is {n}.")
        better = add_answer(store, f"Where is shelf {n}?", f"Shelf {n} is here.", person=f"p{n}")
        worse = add_retry(store, better, "No idea.")
        store.add_feedback(better, f"p{n}", "choice", {"over": worse}, known=True)
        waiting = add_answer(store, f"Who wrote book {n}?")
        store.add_feedback(waiting, "ann", "edit", {"text": f"Author {n}."})
        store.add_feedback(waiting, "bob", "comment", {"text": "Hm."})
    store.queries = 0
    return store


def test_an_exchange_has_all_that_one_needs_to_know_of_an_answer(store: Store) -> None:
    id = add_answer(store, "And on Sundays?", "No.", earlier=[("Open?", "Yes.")], person="bob")
    exchange = store.exchange(id)
    assert (exchange.question, exchange.earlier) == ("And on Sundays?", ["Open?"])
    assert (exchange.answer.id, exchange.answer.content) == (id, "No.")
    assert [message.content for message in exchange.thread][:2] == ["Open?", "Yes."]
    assert exchange.person == "bob"
    assert exchange.speaker == store.speaker(id) != SPEAKER, "with its message's id"


def test_an_answer_to_nobody_has_no_question(store: Store) -> None:
    greeting = store.add_message(store.start_conversation("ann", "Hi"), None, "assistant", "Hi!")
    exchange = store.exchange(greeting)
    assert (exchange.question, exchange.earlier, exchange.speaker) == ("", [], None)


def test_exchanges_are_those_of_one_branch_each(store: Store) -> None:
    first = add_answer(store, "Open?", "Yes.")
    second = add_retry(store, first, "No.", None)
    other = add_answer(store, "Where?", "Here.", person="bob")
    found = store.exchanges([second, other, first, "msg-0", first])
    assert set(found) == {first, second, other}
    assert all(found[id] == store.exchange(id) for id in found)
    assert [found[id].answer.content for id in (first, second, other)] == ["Yes.", "No.", "Here."]


def test_an_unknown_message_is_named(store: Store) -> None:
    for look in (store.exchange, store.exchanges([]).__getitem__):
        with pytest.raises(NotFoundError, match="no message 'msg-0'"):
            look("msg-0")


@pytest.mark.parametrize("keep", [True, False])
def test_curating_many_answers_takes_as_few_queries_as_few(tmp_path: Path, keep: bool) -> None:
    counts = []
    for number in (10, 40):
        store = corrected_and_chosen(tmp_path, number)
        curation = curate(store, CurateSettings(held_out_from=0), persist=keep)
        assert len(curation.rows) == 3 * number and len(curation.dropped) == 2 * number
        counts.append(store.queries)
    assert counts[0] == counts[1] < 20


def test_listing_many_items_takes_as_few_queries_as_few(tmp_path: Path) -> None:
    counts = []
    for number in (10, 40):
        store = corrected_and_chosen(tmp_path, number)
        assert len(list_pending(store)) == number
        counts.append(store.queries)
    assert counts[0] == counts[1] < 8
